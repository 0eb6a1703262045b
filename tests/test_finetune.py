"""`bert_pretrain.finetune` end to end: what it writes, what others can load, and what it refuses."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from downstream_models import make_image_model, make_text_model, read_rows, sentences, write_rows
from runs import environment
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DistilBertConfig, DistilBertModel

from bert_pretrain.__main__ import main
from bert_pretrain.downstream.sources import TaskDataArguments
from bert_pretrain.downstream.tasks import GLUE
from bert_pretrain.downstream.training import Recipe
from bert_pretrain.errors import TrainingError
from bert_pretrain.finetune import FinetuneArguments, run

SHORT = ["--max_steps", "3", "--mixed_precision", "no"]
LOADED_ELSEWHERE = """
import sys
sys.modules["bert_pretrain"] = None  # importing it fails
from transformers import pipeline
found = pipeline("text-classification", model=sys.argv[1])(["the value of a list", "a fault of the file"])
print([row["label"] for row in found])
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_text_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "train.jsonl", sentences(48))
    write_rows(tmp_path / "dev.jsonl", sentences(16, seed=1))
    write_rows(tmp_path / "test.jsonl", sentences(16, seed=2))
    return tmp_path


def finetune(model: str, *flags: str) -> dict[str, Any]:
    assert main(["finetune", "--model", model, "--output_dir", "out", *flags]) == 0
    results: dict[str, Any] = json.loads(Path("out/results.json").read_text())
    return results


FILES = ["--train_file", "train.jsonl", "--validation_file", "dev.jsonl", "--test_file", "test.jsonl"]


def test_two_seeds_their_spread_and_a_model_that_loads_without_this_package(model: str, folder: Path) -> None:
    flags = ["--seeds", "1", "2", "--learning_rate", "5e-3", "--min_steps", "60", "--mixed_precision", "no"]
    results = finetune(model, *FILES, *flags)
    shares = []
    for seed in (1, 2):
        rows = read_rows(folder / f"out/seed-{seed}/predictions_test.jsonl")
        assert [row["text"] for row in rows] == [row["text"] for row in sentences(16, seed=2)]
        for row in rows:
            assert max(row["probabilities"], key=row["probabilities"].get) == row["prediction"]
            assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        shares.append(sum(row["label"] == row["prediction"] for row in rows) / len(rows))
        assert results["seeds"][str(seed)]["metrics"]["test"]["accuracy"] == shares[-1]
        # Of the evaluations on validation rows the best one was kept, whatever the test rows say.
        evaluations = read_rows(folder / f"out/seed-{seed}/evaluations.jsonl")
        best = max(row["eval_accuracy"] for row in evaluations)
        assert len(evaluations) >= 4
        assert results["seeds"][str(seed)]["metrics"]["validation"]["accuracy"] == best
    assert min(shares) > 0.9
    spread = results["metrics"]["test"]["accuracy"]
    assert spread == {"mean": statistics.mean(shares), "std": statistics.stdev(shares)}
    config = json.loads((folder / "out/final/config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "good"} and config["label2id"] == {"bad": 0, "good": 1}
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["final", "results.json", "seed-1", "seed-2"]
    best = results["seeds"][str(results["best_seed"])]["metrics"]["validation"]["accuracy"]
    assert best == max(seed["metrics"]["validation"]["accuracy"] for seed in results["seeds"].values())
    classifier = AutoModelForSequenceClassification.from_pretrained("out/final").eval()
    tokenizer = AutoTokenizer.from_pretrained("out/final")
    for row in read_rows(folder / f"out/seed-{results['best_seed']}/predictions_test.jsonl"):
        logits = classifier(**tokenizer(row["text"], return_tensors="pt")).logits
        assert logits.softmax(dim=1).tolist()[0] == pytest.approx(list(row["probabilities"].values()), abs=1e-4)
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", LOADED_ELSEWHERE, str(folder / "out/final")]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", env=plain)
    assert done.stdout.strip() == "['good', 'bad']", done.stderr


def test_the_same_seed_gives_the_same_numbers_and_weights(model: str, folder: Path) -> None:
    first = finetune(model, *FILES, *SHORT)
    (folder / "out").rename("earlier")
    second = finetune(model, *FILES, *SHORT)
    assert first["seeds"] == second["seeds"]
    ours, theirs = (load_file(folder / name / "final/model.safetensors") for name in ("out", "earlier"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_pairs_and_regression_with_the_columns_of_glue(model: str, folder: Path) -> None:
    rows = [
        {"sentence1": row["text"], "sentence2": f"the {row['text']}", "label": number / 7}
        for number, row in enumerate(sentences(24))
    ]
    write_rows(folder / "pairs.jsonl", rows)
    results = finetune(model, "--task", "stsb", "--train_file", "pairs.jsonl", *SHORT)
    assert list(results["metrics"]["validation"]) == ["pearson", "spearman"]
    config = json.loads((folder / "out/final/config.json").read_text())
    assert config["problem_type"] == "regression"
    (row, *_) = read_rows(folder / "out/seed-42/predictions_validation.jsonl")
    assert row["text_pair"] == f"the {row['text']}" and isinstance(row["prediction"], float)


def test_several_labels_a_row_and_test_rows_without_labels(model: str, folder: Path) -> None:
    rows = [
        {"text": row["text"], "label": [row["label"], *["long"] * (len(row["text"]) > 30)]} for row in sentences(30)
    ]
    write_rows(folder / "multi.jsonl", rows)
    write_rows(folder / "blind.jsonl", [{"text": row["text"]} for row in rows[:5]])
    results = finetune(model, "--train_file", "multi.jsonl", "--test_file", "blind.jsonl", *SHORT)
    assert list(results["metrics"]) == ["validation"]
    assert list(results["metrics"]["validation"]) == ["f1_micro", "f1_macro", "accuracy"]
    predicted = read_rows(folder / "out/seed-42/predictions_test.jsonl")
    assert len(predicted) == 5 and "label" not in predicted[0]
    for row in predicted:
        assert row["prediction"] == [name for name, share in row["probabilities"].items() if share > 0.5]


def test_glue_numbers_get_their_names(model: str, folder: Path) -> None:
    rows = [{"sentence": row["text"], "label": int(row["label"] == "good")} for row in sentences(20)]
    write_rows(folder / "cola.jsonl", rows)
    results = finetune(model, "--task", "cola", "--train_file", "cola.jsonl", *SHORT)
    assert results["chosen_by"] == "validation matthews_correlation"
    config = json.loads((folder / "out/final/config.json").read_text())
    assert config["id2label"] == {"0": "unacceptable", "1": "acceptable"}
    assert GLUE["mnli"].evaluation_splits == ("validation_matched", "test_matched")


def test_a_data_set_with_splits_whose_test_rows_are_unlabelled(model: str, folder: Path) -> None:
    def split(count: int, *, is_labelled: bool = True) -> Dataset:
        rows = sentences(count)
        labels = [int(row["label"] == "good") if is_labelled else -1 for row in rows]
        features = Features({"sentence": Value("string"), "label": ClassLabel(names=["negative", "positive"])})
        return Dataset.from_dict({"sentence": [row["text"] for row in rows], "label": labels}, features=features)

    splits = {"train": split(20), "validation": split(8), "test": split(6, is_labelled=False)}
    DatasetDict(splits).save_to_disk("saved")
    results = finetune(model, "--task", "sst2", "--dataset_name", "saved", *SHORT)
    assert list(results["metrics"]) == ["validation"]
    predicted = read_rows(folder / "out/seed-42/predictions_test.jsonl")
    assert len(predicted) == 6 and predicted[0]["prediction"] in ("negative", "positive")


@pytest.mark.slow
def test_two_processes_train_what_one_does(folder: Path) -> None:
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = make_text_model(folder / "still", **still)
    flags = ["--model", model, *FILES, *SHORT, "--num_evaluations", "1", "--learning_rate", "5e-3"]
    finetune(*flags[1:], "--per_device_train_batch_size", "16")
    words = ["-m", "bert_pretrain.finetune", *flags, "--output_dir", "two", "--per_device_train_batch_size", "8"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*launcher, *words], cwd=folder, env=environment(folder), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ours, theirs = (load_file(folder / name / "final/model.safetensors") for name in ("out", "two"))
    for name, values in ours.items():
        torch.testing.assert_close(values, theirs[name], atol=1e-4, rtol=1e-3)  # float32, AdamW's first steps
    one, two = (len(read_rows(folder / name / "seed-42/predictions_test.jsonl")) for name in ("out", "two"))
    assert one == two == 16


def test_from_scratch_reads_no_weights(model: str, folder: Path) -> None:
    import shutil

    shutil.copytree(model, folder / "bare")
    (folder / "bare/model.safetensors").unlink()
    finetune("bare", "--from_scratch", *FILES, *SHORT)


def test_a_frozen_encoder_is_exported_unchanged(model: str, folder: Path) -> None:
    finetune(model, "--freeze_encoder", *FILES, *SHORT)
    before, after = load_file(f"{model}/model.safetensors"), load_file(folder / "out/final/model.safetensors")
    encoder = [name for name in before if name.startswith("bert.")]
    assert len(encoder) > 20 and all(torch.equal(before[name], after[name]) for name in encoder)


def test_a_model_that_is_not_ours(model: str, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    config = DistilBertConfig(vocab_size=len(tokenizer), dim=32, n_layers=1, n_heads=2, hidden_dim=64)
    DistilBertModel(config).save_pretrained(folder / "distil")
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(folder / "distil")
    finetune("distil", *FILES, *SHORT)


def test_images_with_augmentation(folder: Path) -> None:
    from transformers import pipeline

    model = make_image_model(folder / "vit")
    flags = ["--dataset_name", "digits", "--augmentation", "crop", "--max_steps", "8"]
    results = finetune(model, *flags, "--mixed_precision", "no")
    predicted = read_rows(folder / "out/seed-42/predictions_validation.jsonl")
    assert 170 < len(predicted) < 190 and set(predicted[0]["probabilities"]) == {str(digit) for digit in range(10)}
    share = sum(row["label"] == row["prediction"] for row in predicted) / len(predicted)
    assert results["metrics"]["validation"]["accuracy"]["mean"] == pytest.approx(share)
    assert pipeline("image-classification", model="out/final").image_processor.size == {"height": 8, "width": 8}


def refusal(flags: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["finetune", "--output_dir", "out", *flags])
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert not Path("out").exists()
    return message


def rows_with(**changes: Any) -> list[dict[str, Any]]:
    rows = sentences(8)
    rows[2] |= changes
    return rows


BAD_FILES: dict[str, tuple[list[dict[str, Any]], list[str], str]] = {
    "no text column": ([{"body": "a", "label": 0}], [], "--text_column"),
    "no label column": ([{"text": "a"}], [], "--label_column"),
    "empty": ([], [], "no rows"),
    "one class": ([{"text": "a", "label": "x"}] * 9, [], "two classes"),
    "no label": (rows_with(label=None), [], "row 3"),
    "nan": (rows_with(label=float("nan")), [], "row 3"),
    "text is no text": (rows_with(text=5), [], "row 3"),
    "no pair column": (sentences(8), ["--task", "mrpc"], "text_pair"),
    "named pair column": (sentences(8), ["--text_pair_column", "second"], "--text_pair_column"),
    "regression of words": (sentences(8), ["--task", "regression"], "regression needs numbers"),
    "unknown task": (sentences(8), ["--task", "squad"], "mnli"),
    "unsuitable metric": (sentences(8), ["--metrics", "pearson", "--validation_share", "0.5"], "not defined"),
    "unknown metric": (sentences(8), ["--metrics", "nonesuch", "--validation_share", "0.5"], "--metrics"),
    "unknown label": (sentences(8), ["--validation_file", "other.jsonl"], "'worse'"),
    "no such file": (sentences(8), ["--test_file", "nowhere.csv"], "nowhere.csv"),
    "too long": (sentences(8), ["--max_seq_length", "65"], "3..64"),
    "too little to hold out": (sentences(8), [], "--validation_file"),
    "two sources": (sentences(8), ["--dataset_name", "x"], "pass one"),
    "batch of none": (sentences(8), ["--per_device_train_batch_size", "0"], "at least 1"),
    "rate": (sentences(8), ["--learning_rate", "-1"], "--learning_rate"),
    "seed twice": (sentences(8), ["--seeds", "1", "1"], "--seeds"),
    "no repository": (sentences(8), ["--push_to_hub"], "--hub_model_id"),
    "offline": (sentences(8), ["--push_to_hub", "--hub_model_id", "me/x", "--validation_share", "0.5"], "me/x"),
    "hub without push": (sentences(8), ["--hub_model_id", "me/x"], "--push_to_hub"),
    "split of a file": (sentences(8), ["--test_split", "test"], "--test_split"),
    "augmented text": (sentences(8), ["--augmentation", "crop"], "--augmentation"),
    "scratch and frozen": (sentences(8), ["--from_scratch", "--freeze_encoder"], "one of them"),
    "names": (sentences(8), ["--label_names", "x", "y"], "--label_names"),
    "unknown flag": (sentences(8), ["--epochs", "3"], "--epochs"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_input_is_refused_before_anything_is_written(
    model: str, folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    rows, flags, expected = BAD_FILES[name]
    write_rows(folder / "bad.jsonl", rows)
    write_rows(folder / "other.jsonl", [{"text": "a", "label": "worse"}])
    assert expected in refusal(["--model", model, "--train_file", "bad.jsonl", *flags], capsys)


def test_a_model_that_cannot_classify_is_refused(model: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    files = ["--train_file", "train.jsonl"]
    assert "neither a folder nor" in refusal(["--model", "nowhere", *files], capsys)
    (folder / "empty").mkdir()
    assert "config.json" in refusal(["--model", "empty", *files], capsys)
    bare = shutil.copytree(model, folder / "bare")
    for path in bare.glob("tokenizer*"):
        path.unlink()
    assert "tokenizer" in refusal(["--model", "bare", *files], capsys)
    broken = shutil.copytree(model, folder / "broken")
    (broken / "model.safetensors").write_bytes(b"no weights")
    assert "weights" in refusal(["--model", "broken", *files], capsys)
    assert "nothing to train on" in refusal(["--model", model], capsys)


def test_a_folder_in_use_is_left_alone(model: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "used").mkdir()
    (folder / "used/notes.txt").write_text("mine")
    with pytest.raises(SystemExit):
        main(["finetune", "--model", model, "--train_file", "train.jsonl", "--output_dir", "used"])
    assert "--output_dir" in capsys.readouterr().err
    assert [path.name for path in (folder / "used").iterdir()] == ["notes.txt"]


def test_an_upload_that_fails_leaves_the_model(model: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bert_pretrain.finetune.HfApi.create_repo", lambda *_, **__: None)
    options = FinetuneArguments(model=model, output_dir="out", push_to_hub=True, hub_model_id="me/x")
    data = TaskDataArguments(train_file="train.jsonl", validation_file="dev.jsonl")
    with pytest.raises(TrainingError, match="hf upload me/x"):
        run(options, data, Recipe(max_steps=2, mixed_precision="no"))
    assert (folder / "out/final/model.safetensors").exists()
    assert "| validation | accuracy |" in (folder / "out/final/README.md").read_text()


def test_a_folder_that_cannot_be_made_is_refused_before_training(
    model: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["finetune", "--model", model, "--train_file", "train.jsonl", "--output_dir", "train.jsonl/out"])
    assert stopped.value.code == 2 and "pass another --output_dir" in capsys.readouterr().err


def test_what_was_interrupted_can_be_started_again(model: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(trainer: Any) -> None:
        (Path(trainer.args.output_dir) / "checkpoint-2").mkdir(parents=True)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("bert_pretrain.downstream.training.ClassifierTrainer.train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            finetune(model, *FILES, *SHORT)
    assert not list((folder / "out").iterdir())
    finetune(model, *FILES, *SHORT)
