"""A run on the Hub: it loads by stock transformers, continues elsewhere and betrays no machine."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, constants
from loopback_hub import TOKEN, Fault, LoopbackHub, running_hub, text_files
from runs import command, environment, metrics, run_here, small_flags, write_corpus
from safetensors.torch import load, load_file

from bert_pretrain.__main__ import main
from bert_pretrain.commands.hub import dataset_card
from bert_pretrain.errors import InputError
from bert_pretrain.publishing import hub as hub_module
from bert_pretrain.publishing import publication
from bert_pretrain.publishing.hub import download_checkpoint

REPOSITORY = "tester/words"
PUBLISH = f"--push_to_hub --hub_model_id {REPOSITORY} --hub_private_repo --hub_push_state"
WORDS: dict[str, Any] = {"repo_id": "words", "is_private": False, "max_wait_seconds": 1}
BATCH = "--per_device_train_batch_size 8"
FLAGS = f"--max_steps 8 --save_steps 4 --save_total_limit 1 --dropout 0.1 {BATCH}"

LOADER = """
import sys
sys.modules["bert_pretrain"] = None  # any import of it fails
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForPreTraining, AutoTokenizer
name, final = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(name)
encoded = tokenizer("The model [MASK] data.", "A tree is a list.", return_tensors="pt")
logits = {}
places = {"local": (final, None), "main": (name, None), "early": (name, "step-000004")}
for key, (place, revision) in places.items():
    model, info = AutoModelForPreTraining.from_pretrained(
        place, revision=revision, output_loading_info=True
    )
    assert not any(info.values()), info
    with torch.no_grad():
        logits[key] = model.eval()(**encoded).prediction_logits
assert torch.equal(logits["main"], logits["local"])
assert not torch.equal(logits["early"], logits["main"])
(code,) = ModelCard.load(name).text.split("```python")[1:]
exec(code.split("```")[0])  # as the card says, from the Hub
"""


@contextlib.contextmanager
def finding(hub: LoopbackHub, folder: Path) -> Iterator[None]:
    """Let this process and the uploads that it starts find the Hub, from `folder`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, value in hub.environment(folder).items():
            patch.setenv(name, value)
        # Read from the environment when the library was imported.
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_CACHE", str(folder / "hf/hub"))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield


def call(hub: LoopbackHub, folder: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run Python in a process that finds the Hub."""
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment(folder) | hub.environment(folder),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=1200,
    )


def pretrain(hub: LoopbackHub, folder: Path, flags: str, *, with_files: bool = True) -> str:
    """Pretrain in this process and return what was printed."""
    given = [*small_flags(folder)[0 if with_files else 2 :], *flags.split()]
    with finding(hub, folder):
        return run_here(folder, given)


@pytest.fixture(scope="module")
def hub() -> Iterator[LoopbackHub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def folder(hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run published to a Hub that fails at first; its output directory is given from the root."""
    folder = tmp_path_factory.mktemp("published")
    hub.faults = [Fault(r"POST .*/commit/", 500), Fault(r"PUT /lfs/", "cut")]
    printed = pretrain(
        hub,
        folder,
        f"{FLAGS} {PUBLISH} --hub_strategy all_checkpoints --output_dir {folder / 'out'}",
    )
    assert f"/{REPOSITORY}: main, step-000004, step-000008" in printed
    assert "NOT pushed" not in printed
    return folder


@pytest.fixture
def client(hub: LoopbackHub, folder: Path) -> Iterator[LoopbackHub]:
    """The Hub, found by this process."""
    with finding(hub, folder):
        yield hub


def test_a_published_run_is_complete_and_rotation_took_nothing_from_it(
    hub: LoopbackHub, folder: Path
) -> None:
    repository = hub.model("words")
    assert repository.is_private
    assert set(repository.branches) == {"main", "step-000004", "step-000008"}
    assert [path.name for path in (folder / "out/checkpoints").iterdir()] == ["step-000008"]
    assert not (folder / "out/hub").exists()
    exported = {path.name: path.read_bytes() for path in (folder / "out/final").iterdir()}
    assert {
        "README.md",
        "config.json",
        "curves.png",
        "model.safetensors",
        "run.json",
        "tokenizer.json",
    } <= set(exported)
    for branch in repository.branches:
        files = repository.files(branch)
        assert {path for path in files if "/" not in path} == set(exported)
        listed = json.loads(files["training_state/trainer_state.json"])["files"]
        assert {f"training_state/{name}" for name in listed} <= set(files)
    assert {name: repository.files()[name] for name in exported} == exported
    early, late = (
        load(repository.files(branch)["model.safetensors"])
        for branch in ("step-000004", "step-000008")
    )
    assert any(not early[name].equal(late[name]) for name in late)


def test_stock_transformers_loads_main_and_a_revision_and_the_cards_code_runs(
    hub: LoopbackHub, folder: Path
) -> None:
    done = call(hub, folder, ["-c", LOADER, REPOSITORY, str(folder / "out/final")])
    assert done.returncode == 0, done.stderr
    assert "follows:" in done.stdout and "token_str" in done.stdout


@pytest.mark.parametrize("flag", ["--config_name", "--model_name_or_path"])
def test_an_encoder_of_the_hub_is_trained_by_its_name(
    hub: LoopbackHub, folder: Path, flag: str
) -> None:
    files = small_flags(folder)
    given = [*files[: files.index("--config_name")], *files[files.index("--config_name") + 2 :]]
    out = folder / flag.strip("-")
    with finding(hub, folder):
        run_here(folder, [*given, flag, REPOSITORY, "--max_steps", "2", "--output_dir", str(out)])
    config, published = (
        json.loads((path / "final/config.json").read_text()) for path in (out, folder / "out")
    )
    assert config == published
    start = next(row["mlm_loss"] for row in metrics(out) if row["split"] == "validation")
    trained = metrics(folder / "out")[-1]["mlm_loss"]
    assert (abs(start - trained) < 1e-5) is (flag == "--model_name_or_path")


def test_a_run_continues_from_the_hub_as_if_it_had_not_been_interrupted(
    hub: LoopbackHub, folder: Path
) -> None:
    pretrain(
        hub, folder, f"{FLAGS} --output_dir again --resume_from_checkpoint {REPOSITORY}@step-000004"
    )
    assert metrics(folder / "again") == [row for row in metrics(folder / "out") if row["step"] > 4]
    weights = [
        (folder / name / "final/model.safetensors").read_bytes() for name in ("out", "again")
    ]
    assert weights[0] == weights[1]


def test_nothing_of_the_machine_is_published(hub: LoopbackHub, folder: Path) -> None:
    texts = text_files(hub.model("words"))
    assert {
        "main:run.json",
        "main:README.md",
        "step-000004:training_state/trainer_state.json",
    } <= set(texts)
    for name, text in texts.items():
        if name.endswith("tokenizer.json"):  # all of it is vocabulary
            continue
        for private in (
            str(folder),
            str(folder.parent),
            str(Path.home()),
            TOKEN,
            socket.gethostname(),
            hub.url,
        ):
            assert private not in text, (name, private)
        # No absolute path at all: a quoted or free-standing word that begins with a slash.
        assert not re.search(r"(?<![\w:/.)<])/[a-z]+/", text), name
    config = json.loads(texts["main:run.json"])["config"]
    assert config["output_dir"] == "out" and config["data_files"] == ["corpus.jsonl"]
    assert config["hub_model_id"] == REPOSITORY


def test_the_card_says_what_was_measured(hub: LoopbackHub, folder: Path) -> None:
    card = ModelCard(hub.model("words").files()["README.md"].decode())
    last = metrics(folder / "out")[-1]
    assert last["split"] == "validation"
    results = {
        result.metric_name.replace(" ", "_"): result.metric_value
        for result in card.data.eval_results
    }
    assert results == {name: pytest.approx(last[name], abs=1e-6) for name in results}
    assert {"mlm_loss", "mlm_accuracy", "nsp_accuracy"} <= set(results)
    assert (
        card.data.model_name == "words"
        and card.data.license == "unknown"
        and card.data.language is None
    )
    for text in (
        "--max_steps 8",
        "corpus.jsonl",
        "documents        60 (",
        "tokens read ",
        f"{last['unigram_entropy']:.4g} | unigram entropy",
        "curves.png",
        "Git revision",
        "were not measured",
        f'path = "{REPOSITORY}"',
    ):
        assert text in card.text, text
    early = hub.model("words").files("step-000004")["README.md"].decode()
    assert "4 updates of 8 rows" in early
    assert "after 0 updates" in early, "the last evaluation before that checkpoint"


def test_the_command_line_publishes_a_run_again_and_sends_nothing_twice(
    client: LoopbackHub, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    received, commits = list(client.received), len(client.model("words").commits)
    assert main(["hub", "push", "out"]) == 0
    assert client.received == received and len(client.model("words").commits) == commits
    assert main(["hub", "push", "out", "--hub_model_id", "copy"]) == 0
    assert (
        client.model("copy").files()["model.safetensors"]
        == client.model("words").files()["model.safetensors"]
    )
    assert client.received == received, "large files are known by their digest"
    assert "pushed to" in capsys.readouterr().out


def test_a_repository_without_state_cannot_be_continued(client: LoopbackHub, folder: Path) -> None:
    repository = client.model("words")
    client.repositories["model", "tester/bare"] = bare = type(repository)(is_private=False)
    bare.commit("main", {"config.json": b"{}"})
    for name, expected in (
        ("tester/bare@main", "without `hub_push_state`"),
        (
            "tester/bare@step-000099",
            "cannot be fetched from the Hub (it answered 404 (Invalid rev id: step-000099))",
        ),
        (
            "tester/absent@main",
            "cannot be fetched from the Hub (it answered 404 (Repository not found))",
        ),
        ("tester/words@main", "cannot be fetched from the Hub (RemoteProtocolError: "),
    ):
        client.faults = [Fault(".", "cut", times=100)] if "words" in name else []
        with pytest.raises(InputError) as refused:
            download_checkpoint(name)
        assert expected in str(refused.value)
    client.faults = []


def test_a_corpus_goes_up_and_is_trained_on_by_name(client: LoopbackHub, folder: Path) -> None:
    corpus = write_corpus(folder / "corpus.jsonl")
    prepare = [
        "prepare",
        "--data_files",
        str(corpus),
        "--validation_share",
        "0.2",
        "--language",
        "en",
        "--output_dir",
    ]
    assert main([*prepare, str(folder / "prepared")]) == 0
    assert (
        main(["hub", "push_dataset", str(folder / "prepared"), "--hub_dataset_id", "tester/corpus"])
        == 0
    )
    published = client.repositories["dataset", "tester/corpus"]
    assert set(published.files()) == {
        "README.md",
        "corpus.arrow",
        "manifest.json",
        "token_counts.npy",
        "validation_documents.npy",
    }
    for text in text_files(published).values():
        assert str(folder) not in text
    more = f"--max_steps 8 --dropout 0.1 {BATCH} --dataset_name tester/corpus --output_dir by_name"
    pretrain(client, folder, more, with_files=False)
    assert metrics(folder / "by_name") == metrics(folder / "out"), "the same rows as from the file"
    card = ModelCard.load(folder / "by_name/final/README.md").data
    assert "tester/corpus" in card.datasets and card.language == "en", (
        "as it was stated when the corpus was prepared"
    )


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [("end", []), ("every_save", [("main",)]), ("all_checkpoints", [("step-000004", "main")])],
)
@pytest.mark.parametrize("with_state", [False, True])
def test_the_strategy_says_what_a_save_publishes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    strategy: Any,
    expected: list[Any],
    with_state: bool,
) -> None:
    submitted = []

    class Recorder:
        repo_id = "words"
        say = print

        def submit(self, fill: Callable[[Path], None], *revisions: str) -> bool:
            fill(tmp_path)
            submitted.append(revisions)
            return True

    monkeypatch.setattr(publication, "open_pusher", lambda *_, **__: Recorder())
    checkpoint = tmp_path / "checkpoints/step-000004"
    checkpoint.mkdir(parents=True)
    (checkpoint / "optimizer.bin").touch()
    publisher = publication.Publisher(
        tmp_path,
        lambda folder, _: (folder / "config.json").touch(),
        strategy=strategy,
        with_state=with_state,
        **WORDS,
    )
    publisher.on_save(checkpoint)
    publisher.submit_missed(until_step=4)
    assert submitted == expected
    is_published = strategy != "end"
    assert (tmp_path / "config.json").exists() == is_published
    assert (tmp_path / "training_state/optimizer.bin").exists() == (is_published and with_state)


@pytest.mark.parametrize("strategy", ["every_save", "all_checkpoints"])
def test_a_disk_that_fills_up_behind_a_submission_does_not_end_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: Any
) -> None:
    class Recorder:
        repo_id = "words"

        def submit(self, fill: Callable[[Path], None], *revisions: str) -> bool:
            return True

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(publication, "open_pusher", lambda *_, **__: Recorder())
    publisher = publication.Publisher(
        tmp_path, lambda *_: None, strategy=strategy, with_state=False, **WORDS
    )
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        publisher.on_save(tmp_path)
    assert not publication.is_submitted(tmp_path, "words"), "it is submitted once more"


@pytest.mark.parametrize("token", [None, "", "hf_\xfcber"])
def test_a_missing_token_is_said_without_a_request(
    monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    monkeypatch.setattr(hub_module, "get_token", lambda: token)
    with pytest.raises(hub_module.RefusedError) as refused:
        hub_module.upload(None, repo_id="a/b", repo_type="model", revision="main", is_private=False)
    is_hopeless, reason = hub_module.diagnose(refused.value)
    assert is_hopeless and "HF_TOKEN" in reason


def test_the_card_of_a_corpus_names_its_owner_or_leaves_a_place_for_it() -> None:
    manifest = {
        "language": "de",
        "sentence_rules": "de",
        "counts": {"documents": 5, "sentences": 10, "tokens": 100},
        "tokenizer": {"name": "docs-uncased-8192", "vocab_size": 8192, "hash": "0"},
        "source": {"description": "own"},
    }
    for repo_id, named in (("me/corpus", "me/corpus"), ("corpus", "OWNER/corpus")):
        card = dataset_card(manifest, repo_id, "cc0-1.0")
        assert f"--dataset_name {named}\n" in card.text and card.data.license == "cc0-1.0"
    assert dataset_card(manifest, "corpus", None).data.license == "unknown"


@pytest.mark.parametrize(
    ("entries", "published"),
    [
        ({"language": "de", "sentence_rules": "de"}, "de"),
        ({"language": "en", "sentence_rules": "en"}, "en"),
        ({"language": None, "sentence_rules": "en"}, None),
        ({"language": "en"}, None),  # an older one, of text of any language
    ],
)
def test_the_card_of_a_corpus_names_a_language_that_was_stated(
    entries: dict[str, str | None], published: str | None
) -> None:
    manifest = {
        "counts": {"documents": 5, "sentences": 10, "tokens": 100},
        "tokenizer": {"name": "docs-uncased-8192", "vocab_size": 8192, "hash": "0"},
        "source": {"description": "own"},
    }
    metadata = dataset_card(manifest | entries, "me/corpus", None).data.to_dict()
    assert metadata.get("language") == published


KILLED = """
import os, signal, sys
from bert_pretrain.__main__ import main
from bert_pretrain.publishing.publication import Publisher
on_save = Publisher.on_save
def killed(self, checkpoint):
    if checkpoint.name == "step-000004":
        os.kill(os.getpid(), signal.SIGKILL)
    on_save(self, checkpoint)
Publisher.on_save = killed
main(["pretrain", *sys.argv[1:]])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "average"),
    [("killed", ""), ("killed-average", "--ema_decay 0.9 --export_ema")],
)
def test_a_checkpoint_that_a_kill_kept_from_the_hub_is_published_when_the_run_continues(
    client: LoopbackHub, folder: Path, name: str, average: str
) -> None:
    more = f"--max_steps 6 --save_steps 2 --save_total_limit 0 --dropout 0.1 --output_dir {name}"
    more += f" {BATCH} --push_to_hub --hub_strategy all_checkpoints --hub_push_state {average}"
    flags = [*small_flags(folder), *more.split()]
    done = call(client, folder, ["-c", KILLED, *flags])
    assert done.returncode == -9, done.stderr
    checkpoints = folder / name / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-000002", "step-000004"]
    half = folder / name / "hub/filling.tmp/step-000004"
    half.mkdir(parents=True)
    (half / "config.json").touch()
    printed = pretrain(client, folder, f"{more} --resume_from_checkpoint latest")
    assert "step-000004 has not been published" in printed
    assert "step-000002 has not" not in printed
    repository = client.model(name)
    assert set(repository.branches) == {"main", "step-000002", "step-000004", "step-000006"}
    assert not (folder / name / "hub").exists()
    for step in (2, 4, 6):
        files = repository.files(f"step-{step:06d}")
        kept = "ema.safetensors" if average else "model.safetensors"
        published = load(files["model.safetensors"])
        saved = load_file(checkpoints / f"step-{step:06d}" / kept)
        assert all(published[key].equal(value) for key, value in saved.items())
        assert f"{step} updates of 8 rows" in files["README.md"].decode()
        assert json.loads(files["run.json"])["step"] == step
        state = {path for path in files if path.startswith("training_state/")}
        listed = json.loads(files["training_state/trainer_state.json"])["files"]
        assert state == {f"training_state/{path}" for path in (*listed, "trainer_state.json")}
    last, final = repository.files("step-000006"), repository.files()
    assert last.keys() == final.keys()
    # The card's minutes of training have grown in between.
    assert all(last[path] == final[path] for path in last if path != "README.md")


@pytest.mark.slow
def test_two_processes_train_to_the_end_beside_a_silent_hub(tmp_path: Path) -> None:
    with running_hub() as hub:
        hub.faults = [Fault(r".", "stall", times=1000)]
        flags = f"{FLAGS} --push_to_hub --hub_strategy all_checkpoints --hub_max_wait 3"
        flags += " --output_dir out"
        done = call(
            hub, tmp_path, command([*small_flags(tmp_path), *flags.split()], num_processes=2)[1:]
        )
        assert done.returncode == 0, done.stderr
        printed = done.stdout
        assert "NOT pushed: step-000004" in printed and "bert-pretrain hub push" in printed
        assert (tmp_path / "out/final/model.safetensors").is_file()
        hub.faults = []
        done = call(hub, tmp_path, ["-m", "bert_pretrain", "hub", "push", "out"])
        assert done.returncode == 0, done.stdout + done.stderr
        assert set(hub.model("out").branches) == {"main", "step-000004", "step-000008"}


IMAGE_LOADER = """
import sys
sys.modules["bert_pretrain"] = None
import torch
from huggingface_hub import ModelCard
from transformers import AutoImageProcessor, AutoModelForImageClassification
name = sys.argv[1]
states = {}
for revision in ("main", "step-000002", "step-000004"):
    AutoImageProcessor.from_pretrained(name, revision=revision)
    model, info = AutoModelForImageClassification.from_pretrained(
        name, revision=revision, num_labels=10, output_loading_info=True
    )
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}, info
    assert not info["unexpected_keys"], info
    states[revision] = {
        key: value for key, value in model.state_dict().items() if "classifier" not in key
    }
equal = [all(torch.equal(states["main"][key], states[other][key]) for key in states["main"])
         for other in ("step-000002", "step-000004")]
assert equal == [False, True], equal
exec(ModelCard.load(name).text.split("```python")[1].split("```")[0], names := {})
assert names["embedding"].ndim == 2
"""


@pytest.mark.long
@pytest.mark.parametrize("objective", ["contrastive", "autoencoder --mask_ratio 0.5"])
def test_every_checkpoint_of_an_image_run_is_a_revision_for_stock_transformers(
    tmp_path: Path, objective: str
) -> None:
    with running_hub() as hub:
        size = "vit-tiny" if "mask_ratio" in objective else "convnextv2-mini"
        flags = f"--objective {objective} --config_name {size} --max_eval_rows 64 --output_dir out"
        flags += " --mixed_precision no --eval_steps 2 --max_steps 4 --save_steps 2"
        flags += " --save_total_limit 1 --push_to_hub --hub_model_id tester/digits"
        flags += " --hub_strategy all_checkpoints"
        done = call(hub, tmp_path, command(flags.split())[1:])
        assert done.returncode == 0, done.stdout + done.stderr
        done = call(hub, tmp_path, ["-c", IMAGE_LOADER, "tester/digits"])
        assert done.returncode == 0, done.stderr
        card = ModelCard(hub.model("digits").files()["README.md"].decode())
        assert card.data.pipeline_tag == "image-feature-extraction"
        results = {result.metric_name for result in card.data.eval_results}
        assert {"knn accuracy"} < results and "pca reconstruction loss" not in results
        assert str(tmp_path) not in "".join(text_files(hub.model("digits")).values())
