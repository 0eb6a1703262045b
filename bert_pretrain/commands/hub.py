"""`bert-pretrain hub push RUN_DIR` and `push_dataset PREPARED`: publish what lies on disk.

`push` brings a finished run or a fine-tuned model to the Hub, or finishes what `--push_to_hub`
could not bring there: files that are there already are not sent again. `push_dataset` publishes a
prepared corpus, which `--dataset_name owner/name` then trains on from anywhere.

The exit status is 0 when all is on the Hub and 1 when it is not yet. Training itself ends with 0
whatever the Hub does, so a script that must know asks here: `run_pretraining.py --push_to_hub
--output_dir OUT && bert-pretrain hub push OUT`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from bert_pretrain.commands.running import reporting_input_errors
from bert_pretrain.config.checks import check_license, check_repo_id
from bert_pretrain.data.run_records import read_run_json
from bert_pretrain.data.run_state import held, read_final
from bert_pretrain.errors import InputError
from bert_pretrain.publishing.publication import MAIN, is_submitted, open_pusher, submit_final
from bert_pretrain.publishing.pusher import OUTBOX, HubPusher, link, revision_of, waiting_in
from bert_pretrain.publishing.scrub import scrub
from bert_pretrain.text.prepared import (
    ARROW_FILE,
    MANIFEST,
    TOKEN_COUNTS_FILE,
    VALIDATION_FILE,
    PreparedCorpus,
    stated_language,
)
from bert_pretrain.training.checkpoint import list_checkpoints, step_of

DATASET_CARD = """\
---
{{ card_data }}
---

# {{ title }}

A text corpus prepared for pretraining with bert-pretrain: token ids, word starts and sentence lengths, no text.
{{ documents }} documents, {{ sentences }} sentences, {{ tokens }} tokens of the tokenizer {{ tokenizer }}
({{ vocab_size }} entries, SHA-256 {{ hash }}), made of {{ source }}.

```bash
accelerate launch run_pretraining.py --dataset_name {{ repo_id }}{{ tokenizer_flag }}
```

`manifest.json` says how it was made.
"""
_SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Publish a run or a corpus; returns 0, or 1 if the Hub did not take all of it."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
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
    status = "Exit status: 0 = all of it is on the Hub, 1 = not yet (what is printed says why), 2 = nothing can be pushed."
    push = commands.add_parser(
        "push",
        help="publish a run, or finish publishing it",
        description=f"Publish what waits in RUN_DIR/hub and RUN_DIR/final. {status}",
        allow_abbrev=False,
    )
    push.add_argument("run_dir", type=Path, help="--output_dir of pretraining or fine-tuning")
    push.add_argument(
        "--hub_model_id",
        help="owner/name or name (default: the run's own flag, or the folder's name)",
    )
    push.add_argument(
        "--hub_push_state",
        action="store_true",
        help="also the last checkpoint, to resume from elsewhere",
    )
    dataset = commands.add_parser(
        "push_dataset",
        help="publish a corpus that bert-pretrain prepare wrote",
        description=f"Publish a corpus that bert-pretrain prepare wrote. {status}",
        allow_abbrev=False,
    )
    dataset.add_argument("prepared", type=Path, help="the corpus' folder")
    dataset.add_argument("--hub_dataset_id", help="owner/name or name (default: the folder's name)")
    dataset.add_argument("--hub_license", help="licence of the text by its identifier on the Hub")
    for command in (push, dataset):
        command.add_argument(
            "--hub_private_repo", action="store_true", help="make the repository private"
        )
        command.add_argument(
            "--debug", action="store_true", help="show the traceback of an input error"
        )
    return parser


def push(options: argparse.Namespace) -> bool:
    """Publish a run directory's outbox and its `final/`, and say what they are; returns whether all of it was.

    Raises:
        InputError: the folder holds no run, a process is at work in it, or nothing of it can be
            published yet.
    """
    run_dir: Path = options.run_dir
    config = _flags_of(run_dir)
    repo_id = options.hub_model_id or config.get("hub_model_id") or run_dir.resolve().name
    check_repo_id(repo_id, parameter="hub_model_id")
    has_final = (run_dir / "final").is_dir()
    if not has_final and not waiting_in(run_dir / OUTBOX):
        raise InputError(
            f"{run_dir} has nothing to publish yet (no final/)",
            advice="pass the `output_dir` of a run that has ended, or end this one with "
            "run_pretraining.py `resume_from_checkpoint` latest",
        )
    is_private = options.hub_private_repo or bool(config.get("hub_private_repo"))
    given = ["--hub_model_id", repo_id] if options.hub_model_id else []
    given += [
        f"--{name}" for name in ("hub_private_repo", "hub_push_state") if getattr(options, name)
    ]
    with_state = options.hub_push_state or bool(config.get("hub_push_state"))
    with held(run_dir):
        with_final = has_final and _is_newest(run_dir, repo_id)
        for folder in waiting_in(run_dir / OUTBOX):
            if not (with_final and revision_of(folder) == MAIN):  # where it gives way to `final/`
                sys.stdout.write(
                    f"{revision_of(folder)}: the model{_after(folder)}, which waited in {folder}\n"
                )
        with open_pusher(run_dir, repo_id, is_private=is_private, flags=given) as pusher:
            if with_final:
                pusher.say(
                    f"{MAIN}: the model{_after(run_dir / 'final')}, from {run_dir / 'final'}"
                )
                submit_final(pusher, run_dir, with_state=with_state)
            is_pushed = pusher.finish(None)
        return not _say_missed(run_dir, repo_id, config) and is_pushed


def _say_missed(run_dir: Path, repo_id: str, config: dict[str, Any]) -> bool:
    """Say which checkpoints the run was to publish but never put into the outbox; returns whether there are any."""
    is_own = repo_id == (config.get("hub_model_id") or run_dir.resolve().name)
    if not (
        is_own and config.get("push_to_hub") and config.get("hub_strategy") == "all_checkpoints"
    ):
        return False
    checkpoints = list_checkpoints(run_dir / "checkpoints")
    missed = [path.name for path in checkpoints if not is_submitted(path, repo_id)]
    if missed:
        sys.stdout.write(
            f"NOT pushed: {', '.join(missed)}, which a kill or a full disk kept from "
            f"{run_dir / OUTBOX}; only the run "
            "itself publishes them: repeat its command with --resume_from_checkpoint latest\n"
        )
    return bool(missed)


def _is_newest(run_dir: Path, repo_id: str) -> bool:
    """Return whether `final/` is at least as new as what else goes or went to `main`, and say so if the run goes on."""
    final = read_final(run_dir)
    if final is None or final.is_end:
        return True
    waiting = [
        _step_in(folder) or 0
        for folder in waiting_in(run_dir / OUTBOX)
        if revision_of(folder) == MAIN
    ]
    checkpoints = list_checkpoints(run_dir / "checkpoints")
    published = [step_of(path) for path in checkpoints if is_submitted(path, repo_id)]
    newest = max([*waiting, *published], default=0)
    is_newest = newest <= (final.step or 0)
    kept = (
        ""
        if is_newest
        else f"{run_dir / 'final'} is not published, {MAIN} is of {newest:,} updates already; "
    )
    sys.stdout.write(
        f"NOTE: {kept}the run was continued and has not ended: --resume_from_checkpoint latest "
        "ends it\n"
    )
    return is_newest


def _step_in(folder: Path) -> int | None:
    """Return the updates of the model in a folder to be published; None if it does not say."""
    step: int | None = (
        read_run_json(folder).get("step") if (folder / "run.json").is_file() else None
    )
    return step


def _after(folder: Path) -> str:
    step = _step_in(folder)
    return "" if step is None else f" after {step:,} updates"


def _flags_of(folder: Path) -> dict[str, Any]:
    """Return the flags that wrote a folder, of pretraining or of fine-tuning."""
    results = folder / "results.json"
    if results.is_file() and not (folder / "run.json").exists():
        return read_run_json(folder, name=results.name)["config"]  # type: ignore[no-any-return]  # checked there
    return read_run_json(folder)["config"]  # type: ignore[no-any-return]


def push_dataset(options: argparse.Namespace) -> bool:
    """Publish a prepared corpus; returns whether it was.

    Raises:
        InputError: the folder holds no prepared corpus, another process publishes it, or a flag
            cannot be used.
    """
    prepared: Path = options.prepared
    repo_id = options.hub_dataset_id or prepared.resolve().name
    check_repo_id(repo_id, parameter="hub_dataset_id")
    check_license(options.hub_license)
    manifest = scrub(PreparedCorpus.load(prepared).manifest)

    def fill(folder: Path) -> None:
        for name in (ARROW_FILE, VALIDATION_FILE, TOKEN_COUNTS_FILE):
            if (prepared / name).exists():  # an older corpus lacks the token counts
                link(prepared / name, folder / name)
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        _dataset_card(manifest, repo_id, options.hub_license).save(folder / "README.md")

    outbox = prepared.resolve().with_name(prepared.resolve().name + ".outbox")
    words = ["push_dataset", str(prepared), "--hub_dataset_id", repo_id]
    words += ["--hub_license", options.hub_license] if options.hub_license else []
    words += ["--hub_private_repo"] if options.hub_private_repo else []
    command = f"bert-pretrain hub {shlex.join(words)}"
    with (
        held(prepared),
        HubPusher(
            outbox,
            repo_id,
            is_private=options.hub_private_repo,
            finish_command=command,
            repo_type="dataset",
        ) as pusher,
    ):
        pusher.submit(fill, MAIN)
        return pusher.finish(None)


def _dataset_card(manifest: dict[str, Any], repo_id: str, license_name: str | None) -> DatasetCard:
    counts, tokenizer = manifest["counts"], manifest["tokenizer"]
    is_default = "/" not in tokenizer["name"] and tokenizer["name"].startswith("docs-")
    card: DatasetCard = DatasetCard.from_template(
        DatasetCardData(
            language=stated_language(manifest),
            license=license_name or "unknown",
            task_categories=["fill-mask"],
            size_categories=[
                next((name for size, name in _SIZES if counts["documents"] < size), "n>10M")
            ],
            tags=["bert-pretrain", "tokenized"],
            pretty_name=repo_id.rpartition("/")[2],
        ),
        template_str=DATASET_CARD,
        title=repo_id.rpartition("/")[2],
        repo_id=repo_id if "/" in repo_id else f"OWNER/{repo_id}",
        source=manifest["source"]["description"],
        documents=f"{counts['documents']:,}",
        sentences=f"{counts['sentences']:,}",
        tokens=f"{counts['tokens']:,}",
        tokenizer=tokenizer["name"],
        vocab_size=f"{tokenizer['vocab_size']:,}",
        hash=tokenizer["hash"],
        tokenizer_flag="" if is_default else f" --tokenizer_name {tokenizer['name']}",
    )
    return card
