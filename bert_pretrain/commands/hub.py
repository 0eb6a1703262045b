"""`bert-pretrain hub push RUN_DIR` and `hub push_dataset PREPARED`: publish what lies on disk.

`push` brings a finished run or a fine-tuned model to the Hub, or finishes what `--push_to_hub`
could not bring there: files that are there already are not sent again. `push_dataset` publishes a
prepared corpus, which `--dataset_name owner/name` then trains on from anywhere.

Training ends with the exit status 0 whatever the Hub does, so a script that must know asks here:
`run_pretraining.py --push_to_hub --output_dir OUT && bert-pretrain hub push OUT`.
"""

from __future__ import annotations

import argparse
import bisect
import html
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from bert_pretrain.commands.running import reporting_input_errors
from bert_pretrain.config.flags import check_license, check_repo_id
from bert_pretrain.data.run_folder import held, list_checkpoints, read_final, read_run_json, step_of
from bert_pretrain.errors import InputError
from bert_pretrain.publishing.publication import is_submitted, open_pusher, submit_final
from bert_pretrain.publishing.pusher import MAIN, OUTBOX, HubPusher, branch_of, link, waiting_in
from bert_pretrain.publishing.scrub import paths_in, scrub
from bert_pretrain.text.prepared import FILES, PreparedCorpus, stated_language, write_manifest

STATUS = (
    "Exit status: 0 = all of it is on the Hub, 1 = not yet (what is printed says why), "
    "2 = nothing can be pushed."
)
DATASET_CARD = """\
---
{{ card_data }}
---

# {{ title }}

A text corpus prepared for pretraining with bert-pretrain: token ids, word starts and sentence
lengths, no text. {{ documents }} documents, {{ sentences }} sentences, {{ tokens }} tokens of the
tokenizer {{ tokenizer.name }} ({{ "{:,}".format(tokenizer.vocab_size) }} entries, SHA-256
{{ tokenizer.hash }}), made of {{ source }}.

```bash
accelerate launch run_pretraining.py --dataset_name {{ repo_id }}{{ tokenizer_flag }}
```

`manifest.json` says how it was made.
"""
# The Hub's names for numbers of documents below 10 ** 3, 10 ** 4, ... 10 ** 7, and for more.
SIZE_NAMES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "n>10M")


def main(arguments: Sequence[str] | None = None) -> int:
    """Publish a run or a corpus; returns 0, or 1 if the Hub did not take all of it."""
    options = _parser().parse_args(arguments)
    with reporting_input_errors(debug=options.debug):
        is_done = push(options) if options.command == "push" else push_dataset(options)
    return 0 if is_done else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bert-pretrain hub",
        allow_abbrev=False,
        description="Publish on the Hugging Face Hub. The token comes from HF_TOKEN or `hf auth "
        "login`.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    push = commands.add_parser(
        "push",
        help="publish a run, or finish publishing it",
        description=f"Publish what waits in RUN_DIR/hub and RUN_DIR/final. {STATUS}",
        allow_abbrev=False,
    )
    push.add_argument("run_dir", type=Path, help="--output_dir of pretraining or fine-tuning")
    push.add_argument(
        "--hub_model_id",
        help="owner/name or name (default: the run's own flag, or the folder's name)",
    )
    state_help = "also the last checkpoint, to resume from elsewhere"
    push.add_argument("--hub_push_state", action="store_true", help=state_help)
    dataset = commands.add_parser(
        "push_dataset",
        help="publish a corpus that bert-pretrain prepare wrote",
        description=f"Publish a corpus that bert-pretrain prepare wrote. {STATUS}",
        allow_abbrev=False,
    )
    dataset.add_argument("prepared", type=Path, help="the corpus' folder")
    dataset.add_argument("--hub_dataset_id", help="owner/name or name (default: the folder's name)")
    dataset.add_argument("--hub_license", help="licence of the text by its identifier on the Hub")
    shared = {
        "--hub_private_repo": "make the repository private",
        "--debug": "show the traceback of an input error",
    }
    for command in (push, dataset):
        for name, help_text in shared.items():
            command.add_argument(name, action="store_true", help=help_text)
    return parser


def push(options: argparse.Namespace) -> bool:
    """Publish a run's outbox and its `final/`; returns whether all of it was published.

    Raises:
        InputError: the folder holds no run, a process is at work in it, or nothing of it can be
            published yet.
    """
    run_dir: Path = options.run_dir
    outbox, final = run_dir / OUTBOX, run_dir / "final"
    is_finetuned = (run_dir / "results.json").is_file() and not (run_dir / "run.json").exists()
    record = read_run_json(run_dir, name="results.json" if is_finetuned else "run.json")
    config: dict[str, Any] = record["config"]
    own_id = config.get("hub_model_id") or run_dir.resolve().name
    repo_id = options.hub_model_id or own_id
    check_repo_id(repo_id, parameter="hub_model_id")
    # What waits is for the run's own repository; another one gets final/ alone.
    is_own = _is_same(repo_id, own_id)
    if not final.is_dir() and not (is_own and waiting_in(outbox)):
        raise InputError(
            f"{run_dir} has nothing to publish yet (no final/)",
            advice="pass the `output_dir` of a run that has ended, or end this one with "
            "run_pretraining.py `resume_from_checkpoint` latest",
        )
    with held(run_dir):
        box = outbox if is_own else run_dir / f"{OUTBOX}-{repo_id.replace('/', '--')}"
        with_final = final.is_dir() and _is_newest(run_dir, repo_id, box)
        for folder in waiting_in(box):
            branch = branch_of(folder)
            if not (with_final and branch == MAIN):  # that one gives way to `final/`
                _say(f"{branch}: the model{_after(folder)}, which waited in {folder}")
        is_private = options.hub_private_repo or bool(config.get("hub_private_repo"))
        flags = _given(options, "hub_model_id", "hub_private_repo", "hub_push_state")
        opening = open_pusher(run_dir, repo_id, is_private=is_private, flags=flags, outbox=box)
        with opening as pusher:
            if with_final:
                pusher.say(f"{MAIN}: the model{_after(final)}, from {final}")
                with_state = options.hub_push_state or bool(config.get("hub_push_state"))
                submit_final(pusher, run_dir, with_state=with_state)
            is_pushed = pusher.finish(None)
        missed = _missed_checkpoints(run_dir, repo_id, config) if is_own else []
    if missed:
        _say(
            f"NOT pushed: {', '.join(missed)}: not in {outbox}, because the run was killed or the "
            "disk was full; only the run itself can publish them: repeat its command with "
            "--resume_from_checkpoint latest"
        )
    return is_pushed and not missed


def _missed_checkpoints(run_dir: Path, repo_id: str, config: dict[str, Any]) -> list[str]:
    """Return the checkpoints that the run was to publish but never put into the outbox."""
    if not config.get("push_to_hub") or config.get("hub_strategy") != "all_checkpoints":
        return []
    checkpoints = list_checkpoints(run_dir / "checkpoints")
    return [path.name for path in checkpoints if not is_submitted(path, repo_id)]


def _is_same(repo_id: str, other: str) -> bool:
    """Return whether two names are of one repository; without an owner it is the token's."""
    if "/" in repo_id and "/" in other:
        return repo_id == other
    return repo_id.rpartition("/")[2] == other.rpartition("/")[2]


def _is_newest(run_dir: Path, repo_id: str, outbox: Path) -> bool:
    """Return whether `final/` is as new as all that `main` has or gets; say if the run goes on."""
    final = read_final(run_dir)
    if final is None or final.is_end:
        return True
    waiting = [path for path in waiting_in(outbox) if branch_of(path) == MAIN]
    checkpoints = list_checkpoints(run_dir / "checkpoints")
    published = [step_of(path) for path in checkpoints if is_submitted(path, repo_id)]
    newest = max([0, *published, *(_step_in(folder) or 0 for folder in waiting)])
    is_newest = newest <= (final.step or 0)
    kept = f"{run_dir / 'final'} is not published, {MAIN} is of {newest:,} updates already; "
    _say(
        f"NOTE: {'' if is_newest else kept}the run was continued and has not ended: "
        "--resume_from_checkpoint latest ends it"
    )
    return is_newest


def _step_in(folder: Path) -> int | None:
    """Return the updates of the model in a folder to be published; None if it does not say."""
    return read_run_json(folder).get("step") if (folder / "run.json").is_file() else None


def _after(folder: Path) -> str:
    step = _step_in(folder)
    return "" if step is None else f" after {step:,} updates"


def _given(options: argparse.Namespace, *names: str) -> list[str]:
    """Return those of the named flags that were given, as they are typed."""
    words = []
    for name in names:
        if value := getattr(options, name):
            words += [f"--{name}"] if value is True else [f"--{name}", value]
    return words


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def _public(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest of a corpus without what is of this machine, and without its text."""
    source = {name: value for name, value in manifest["source"].items() if name != "files"}
    # Beginnings of documents.
    public = manifest | {"source": source, "held_out_twice": []}
    found: dict[str, Any] = scrub(public, paths=paths_in(manifest))
    return found


def push_dataset(options: argparse.Namespace) -> bool:
    """Publish a prepared corpus; returns whether it was.

    Raises:
        InputError: the folder holds no prepared corpus, another process publishes it, or a flag
            cannot be used.
    """
    prepared: Path = options.prepared
    options.hub_dataset_id = options.hub_dataset_id or prepared.resolve().name
    check_repo_id(options.hub_dataset_id, parameter="hub_dataset_id")
    check_license(options.hub_license)
    manifest = _public(PreparedCorpus.load(prepared).manifest)
    card = dataset_card(manifest, options.hub_dataset_id, options.hub_license)

    def fill(folder: Path) -> None:
        for name in FILES:
            link(prepared / name, folder / name)
        write_manifest(folder, manifest)
        card.save(folder / "README.md")

    given = _given(options, "hub_dataset_id", "hub_license", "hub_private_repo")
    command = shlex.join(["push_dataset", str(prepared), *given])
    with (
        held(prepared),
        HubPusher(
            prepared.resolve().with_name(prepared.resolve().name + ".outbox"),
            options.hub_dataset_id,
            is_private=options.hub_private_repo,
            finish_command=f"bert-pretrain hub {command}",
            repo_type="dataset",
        ) as pusher,
    ):
        pusher.submit(fill, MAIN)
        return pusher.finish(None)


def dataset_card(manifest: dict[str, Any], repo_id: str, license_name: str | None) -> DatasetCard:
    """Return the card of a prepared corpus by its scrubbed manifest."""
    counts, tokenizer = manifest["counts"], manifest["tokenizer"]
    is_default = "/" not in tokenizer["name"] and tokenizer["name"].startswith("docs-")
    title = repo_id.rpartition("/")[2]
    size = bisect.bisect([10**power for power in range(3, 8)], counts["documents"])
    card: DatasetCard = DatasetCard.from_template(
        DatasetCardData(
            language=stated_language(manifest),
            license=license_name or "unknown",
            task_categories=["fill-mask"],
            size_categories=[SIZE_NAMES[size]],
            tags=["bert-pretrain", "tokenized"],
            pretty_name=title,
        ),
        template_str=DATASET_CARD,
        title=title,
        repo_id=repo_id if "/" in repo_id else f"OWNER/{repo_id}",
        source=html.escape(manifest["source"]["description"], quote=False),
        **{name: f"{counts[name]:,}" for name in ("documents", "sentences", "tokens")},
        tokenizer=tokenizer,
        tokenizer_flag="" if is_default else f" --tokenizer_name {tokenizer['name']}",
    )
    return card
