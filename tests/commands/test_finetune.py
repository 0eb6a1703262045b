"""`bert-pretrain finetune` end to end: what it writes, what others load, what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Image as DatasetImage
from downstream_models import (
    make_image_model,
    make_text_model,
    read_rows,
    sentences,
    source_of,
    write_rows,
)
from huggingface_hub import ModelCard
from runs import environment
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartConfig,
    BartModel,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    ResNetConfig,
    ResNetModel,
    T5Config,
    ViTImageProcessorPil,
)

from bert_pretrain.__main__ import main
from bert_pretrain.downstream.models import ClassifierSource
from bert_pretrain.downstream.results import model_card, summarize_seeds
from bert_pretrain.downstream.sources import open_splits
from bert_pretrain.downstream.tasks import GLUE, Task, find_labels, find_task

SHORT = ["--max_steps", "2", "--num_evaluations", "1", "--mixed_precision", "no"]
LOADED_ELSEWHERE = """
import sys
sys.modules["bert_pretrain"] = None  # importing it fails
from transformers import pipeline
texts = ["the value of a list", "a fault of the file"]
print([row["label"] for row in pipeline("text-classification", model=sys.argv[1])(texts)])
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


FILES = [
    "--train_file",
    "train.jsonl",
    "--validation_file",
    "dev.jsonl",
    "--test_file",
    "test.jsonl",
]


@pytest.mark.slow
def test_two_seeds_their_spread_and_a_model_that_loads_without_this_package(
    model: str, folder: Path
) -> None:
    flags = [
        "--seeds",
        "1",
        "2",
        "--learning_rate",
        "5e-3",
        "--min_steps",
        "60",
        "--mixed_precision",
        "no",
    ]
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
    assert config["id2label"] == {"0": "bad", "1": "good"} and config["label2id"] == {
        "bad": 0,
        "good": 1,
    }
    assert sorted(path.name for path in (folder / "out").glob("[!.]*")) == [
        "final",
        "results.json",
        "seed-1",
        "seed-2",
    ]
    best = results["seeds"][str(results["best_seed"])]["metrics"]["validation"]["accuracy"]
    assert best == max(
        seed["metrics"]["validation"]["accuracy"] for seed in results["seeds"].values()
    )
    classifier = AutoModelForSequenceClassification.from_pretrained("out/final").eval()
    tokenizer = AutoTokenizer.from_pretrained("out/final")
    for row in read_rows(folder / f"out/seed-{results['best_seed']}/predictions_test.jsonl"):
        logits = classifier(**tokenizer(row["text"], return_tensors="pt")).logits
        assert logits.softmax(dim=1).tolist()[0] == pytest.approx(
            list(row["probabilities"].values()), abs=1e-4
        )
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", LOADED_ELSEWHERE, str(folder / "out/final")]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", env=plain)
    assert done.stdout.strip() == "['good', 'bad']", done.stderr


def test_what_the_largest_class_alone_would_reach_stands_beside_the_accuracy(
    model: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = sentences(24)
    bad = [row for row in rows if row["label"] == "bad"]
    write_rows(folder / "train.jsonl", rows + bad)  # two in three are bad
    good = [row for row in sentences(16, seed=2) if row["label"] == "good"]
    write_rows(folder / "test.jsonl", good[:3] + bad[:1])
    results = finetune(model, *FILES, *SHORT)
    validation = [row["label"] for row in sentences(16, seed=1)]
    share = validation.count("bad") / len(validation)
    assert results["majority_accuracy"] == {"validation": share, "test": 0.25}
    assert "test        largest class always    0.2500" in capsys.readouterr().out
    card = (folder / "out/final/README.md").read_text()
    assert "| test | accuracy of always the largest class | 0.2500 | | |" in card


def test_the_same_seed_gives_the_same_numbers_and_weights(model: str, folder: Path) -> None:
    first = finetune(model, *FILES, *SHORT)
    (folder / "out").rename("earlier")
    second = finetune(model, *FILES, *SHORT)
    assert first["seeds"] == second["seeds"]
    ours, theirs = (
        load_file(folder / name / "final/model.safetensors") for name in ("out", "earlier")
    )
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
        {"text": row["text"], "label": [row["label"], *["long"] * (len(row["text"]) > 30)]}
        for row in sentences(30)
    ]
    write_rows(folder / "multi.jsonl", rows)
    write_rows(folder / "blind.jsonl", [{"text": row["text"]} for row in rows[:5]])
    results = finetune(model, "--train_file", "multi.jsonl", "--test_file", "blind.jsonl", *SHORT)
    assert list(results["metrics"]) == ["validation"]
    assert list(results["metrics"]["validation"]) == ["f1_micro", "f1_macro", "accuracy"]
    predicted = read_rows(folder / "out/seed-42/predictions_test.jsonl")
    assert len(predicted) == 5 and "label" not in predicted[0]
    for row in predicted:
        assert row["prediction"] == [
            name for name, share in row["probabilities"].items() if share > 0.5
        ]


def test_multi_hot_labels_are_named_in_the_predictions(model: str, folder: Path) -> None:
    def multi_hot(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            row | {"label": [1.0, float(row["label"] == "good"), float(len(row["text"]) > 30)]}
            for row in rows
        ]

    for name, rows in (
        ("train", multi_hot(sentences(30))),
        ("test", multi_hot(sentences(6, seed=1))[1:2]),
    ):
        write_rows(folder / f"{name}.jsonl", rows)
    files = ["--train_file", "train.jsonl", "--test_file", "test.jsonl", "--task", "multi_hot"]
    finetune(model, *files, "--label_names", "any", "good", "long", *SHORT)
    config = json.loads((folder / "out/final/config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert list(config["id2label"].values()) == ["any", "good", "long"]
    (row,) = read_rows(folder / "out/seed-42/predictions_test.jsonl")
    assert row["label"] == ["any", "good"] + ["long"] * (len(row["text"]) > 30)


def notes(model: str, file: str, task: str) -> str:
    """Return what is said of the rows of a file before training."""
    return "\n".join(open_splits(model, source_of(train_file=file), find_task(task), seed=0).notes)


def test_cells_with_the_separator_of_labels_are_pointed_out_where_the_task_was_guessed(
    model: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = ["x", "y|x", "y"]
    lines = [f"{row['text']},{labels[number % 3]}\n" for number, row in enumerate(sentences(30))]
    (folder / "train.csv").write_text("text,label\n" + "".join(lines))
    for task in ("classification", "multi_label"):
        assert "contain '|'" not in notes(model, "train.csv", task)
    finetune(model, "--train_file", "train.csv", *SHORT)
    printed = capsys.readouterr().out
    assert printed.count("10 of the 30 labels of train.csv contain '|'") == 1
    assert printed.count("--task multi_label") == 1


def test_texts_that_look_like_fractions_are_pointed_out_where_the_task_was_guessed(
    model: str, folder: Path
) -> None:
    for labels, task, count in (
        (("3.5", "4.0"), "auto", 1),
        (("3", "4"), "auto", 0),
        (("3.5", "4.0"), "classification", 0),
    ):
        rows = [row | {"label": labels[row["label"] == "good"]} for row in sentences(30)]
        write_rows(folder / "train.jsonl", rows)
        assert notes(model, "train.jsonl", task).count("look like numbers") == count


@pytest.mark.parametrize(
    ("classes", "test_labels", "is_measured"),
    [
        (["bad", "good"], ["", ""], False),
        (["bad", "good"], ["-1", "-1"], False),
        (["-1", "1"], ["-1", "-1"], True),
        (["bad", "good"], ["bad", "bad"], True),
    ],
)
def test_test_rows_are_unlabelled_if_all_labels_are_empty_or_minus_one_without_such_a_class(
    model: str, folder: Path, classes: list[str], test_labels: list[str], is_measured: bool
) -> None:
    lines = [f"the {row['text']},{classes[number % 2]}" for number, row in enumerate(sentences(30))]
    (folder / "train.csv").write_text("text,label\n" + "\n".join(lines))
    (folder / "test.csv").write_text(
        "text,label\n" + "\n".join(f"a {i},{x}" for i, x in enumerate(test_labels))
    )
    files = source_of(train_file="train.csv", test_file="test.csv")
    rows = open_splits(model, files, find_task("auto"), seed=0).rows["test"]
    assert len(rows) == 2 and (rows.labels is not None) == is_measured


def test_class_names_of_any_characters_are_kept_and_shown_in_one_line(
    model: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["two\nlines \x1b[31m", "Z\u00fcrich \u65e5\u672c", "x" * 100, "a`<img src=x>`b"]
    rows = [row | {"label": names[number % 4]} for number, row in enumerate(sentences(40))]
    write_rows(folder / "train.jsonl", rows)
    finetune(model, "--train_file", "train.jsonl", *SHORT)
    config = json.loads((folder / "out/final/config.json").read_text())
    assert set(config["id2label"].values()) == set(names)
    (row, *_) = read_rows(folder / "out/seed-42/predictions_validation.jsonl")
    assert set(row["probabilities"]) == set(names)
    card = (folder / "out/final/README.md").read_text()
    printed = capsys.readouterr().out
    assert "<code>a`&lt;img src=x&gt;`b</code>" in card and "<img" not in card
    assert "x" * 100 in card and "x" * 60 + "..." in printed and "x" * 61 not in printed
    for shown in (card, printed):
        assert "two\\nlines \\x1b[31m" in shown and names[1] in shown and "\x1b" not in shown


def test_labels_of_json_keep_their_names_and_agree_with_those_of_a_csv_file(
    model: str, folder: Path
) -> None:
    for number, (labels, names) in enumerate(
        [((False, True), ["false", "true"]), (("3.1", "3.10"), ["3.1", "3.10"])]
    ):
        rows = [row | {"label": labels[row["label"] == "good"]} for row in sentences(30)]
        write_rows(folder / "train.jsonl", rows)
        lines = [f"{row['text']},{names[row['label'] == 'good']}\n" for row in sentences(8)]
        (folder / "test.csv").write_text("text,label\n" + "".join(lines))
        finetune(model, "--train_file", "train.jsonl", "--test_file", "test.csv", *SHORT)
        config = json.loads((folder / "out/final/config.json").read_text())
        assert (
            list(config["id2label"].values()) == names
            and config["problem_type"] == "single_label_classification"
        )
        predicted = read_rows(folder / "out/seed-42/predictions_test.jsonl")
        assert [row["label"] for row in predicted] == names * 4 and list(
            predicted[0]["probabilities"]
        ) == names
        assert (
            f"Labels: `{names[0]}`, `{names[1]}`." in (folder / "out/final/README.md").read_text()
        )
        (folder / "out").rename(folder / f"out-{number}")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], ""),
        (
            ["--from_scratch"],
            "trained from random weights: only architecture and tokenizer are those of another "
            "model",
        ),
        (["--freeze_encoder"], "Its encoder is that of another model, frozen: only the head"),
    ],
)
def test_the_card_says_what_was_trained_in_the_forms_of_the_hub(
    model: str, folder: Path, flags: list[str], said: str
) -> None:
    finetune(model, *FILES, *SHORT, *flags)
    card = ModelCard.load(folder / "out/final/README.md")
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "license": "unknown",
        "pipeline_tag": "text-classification",
        "tags": ["bert", "bert-pretrain"],
    }
    assert said in card.text and model not in card.text
    assert ("random weights" in card.text, "frozen" in card.text) == (
        flags[:1] == ["--from_scratch"],
        "head" in said,
    )
    assert 'model=".")  # this folder' in card.text


@pytest.mark.parametrize("from_scratch", [False, True])
def test_the_card_names_the_model_on_the_hub_that_weights_or_architecture_are_of(
    model: str, folder: Path, from_scratch: bool
) -> None:
    data = source_of(train_file="train.jsonl")
    splits = open_splits(model, data, find_task("auto"), seed=0)
    results = summarize_seeds({1: {"metrics": {"validation": {"accuracy": 0.5}}}})
    how: dict[str, Any] = {"from_scratch": from_scratch, "freeze_encoder": False, "overlap": None}
    how["adaptation"] = None
    card = ModelCard(model_card(splits, results, repo_id="me/mine", model_id="owner/bert", **how))
    assert card.data.base_model == (None if from_scratch else "owner/bert")
    assert ("are those of `owner/bert`" in card.text) == from_scratch
    assert 'model="me/mine")\n' in card.text and "# mine\n" in card.text


def test_rows_are_no_longer_than_the_tokenizer_says_unless_that_is_asked_for(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_text_model(folder / "model")
    AutoTokenizer.from_pretrained(model, model_max_length=24).save_pretrained(model)
    write_rows(folder / "train.jsonl", [row | {"text": "word " * 70} for row in sentences(20)])
    for flags, cut_at in (([], 24), (["--max_seq_length", "40"], 40)):
        finetune(model, "--train_file", "train.jsonl", *SHORT, *flags)
        printed = capsys.readouterr().out
        assert f"20 of the 20 have {cut_at} tokens or more and end there" in printed
        assert AutoTokenizer.from_pretrained("out/final").model_max_length == cut_at
        assert printed.count(
            "WARNING: --max_seq_length is 40 but the tokenizer's model_max_length is 24"
        ) == (cut_at > 24)
        shutil.rmtree("out")


def test_from_scratch_the_tokenizer_promises_no_more_than_was_trained(folder: Path) -> None:
    model = make_text_model(folder / "model")
    AutoTokenizer.from_pretrained(model, model_max_length=40).save_pretrained(model)
    write_rows(folder / "train.jsonl", sentences(20))
    lengths = []
    for flags in ([], ["--from_scratch"]):
        finetune(model, "--train_file", "train.jsonl", *SHORT, "--max_seq_length", "16", *flags)
        lengths.append(AutoTokenizer.from_pretrained("out/final").model_max_length)
        shutil.rmtree("out")
    assert lengths == [40, 16]


def test_texts_that_are_cut_or_empty_are_counted(
    model: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = sentences(20)
    for number, row in enumerate(rows):
        row["text"] = "word " * 70 if number < 5 else " " if number < 8 else "word " * 3
    write_rows(folder / "train.jsonl", rows)
    finetune(model, "--train_file", "train.jsonl", *SHORT)
    printed = capsys.readouterr().out
    assert "5 of the 20 have 64 tokens or more and end there (--max_seq_length)" in printed
    assert "3 of the 20 have no text, only a label" in printed


def test_glue_numbers_get_their_names(model: str, folder: Path) -> None:
    rows = [
        {"sentence": row["text"], "label": int(row["label"] == "good")} for row in sentences(20)
    ]
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
        features = Features(
            {"sentence": Value("string"), "label": ClassLabel(names=["negative", "positive"])}
        )
        return Dataset.from_dict(
            {"sentence": [row["text"] for row in rows], "label": labels}, features=features
        )

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
    flags = ["--model", model, *FILES, *SHORT, "--learning_rate", "5e-3"]
    finetune(*flags[1:], "--per_device_train_batch_size", "16")
    words = [
        "-m",
        "bert_pretrain",
        "finetune",
        *flags,
        "--output_dir",
        "two",
        "--per_device_train_batch_size",
        "8",
    ]
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    done = subprocess.run(
        [*launcher, *words], cwd=folder, env=environment(folder), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    ours, theirs = (load_file(folder / name / "final/model.safetensors") for name in ("out", "two"))
    for name, values in ours.items():
        torch.testing.assert_close(
            values, theirs[name], atol=1e-4, rtol=1e-3
        )  # float32, AdamW's first steps
    one, two = (
        len(read_rows(folder / name / "seed-42/predictions_test.jsonl")) for name in ("out", "two")
    )
    assert one == two == 16


def test_from_scratch_reads_no_weights(model: str, folder: Path) -> None:
    shutil.copytree(model, folder / "bare")
    (folder / "bare/model.safetensors").unlink()
    finetune("bare", "--from_scratch", *FILES, *SHORT)


def test_a_frozen_encoder_is_exported_unchanged(model: str, folder: Path) -> None:
    finetune(model, "--freeze_encoder", *FILES, *SHORT)
    before, after = (
        load_file(f"{model}/model.safetensors"),
        load_file(folder / "out/final/model.safetensors"),
    )
    encoder = [name for name in before if name.startswith("bert.")]
    assert len(encoder) > 20 and all(torch.equal(before[name], after[name]) for name in encoder)


def test_a_frozen_encoder_keeps_the_running_statistics_of_its_normalisation(folder: Path) -> None:
    config = ResNetConfig(
        num_channels=1,
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
        num_labels=10,
    )
    torch.manual_seed(0)
    ResNetModel(config).save_pretrained(folder / "resnet")
    ViTImageProcessorPil(
        size={"height": 8, "width": 8}, image_mean=[0.3], image_std=[0.4], do_convert_rgb=False
    ).save_pretrained(folder / "resnet")
    flags = ["--dataset_name", "digits", "--learning_rate", "1e-2", *SHORT]
    finetune("resnet", "--freeze_encoder", *flags)
    before, after = (
        load_file(folder / name / "model.safetensors") for name in ("resnet", "out/final")
    )
    statistics_of_rows = [name for name in before if "running" in name or "num_batches" in name]
    assert len(statistics_of_rows) > 9
    for name, values in before.items():
        assert torch.equal(values, after[f"resnet.{name}"]), name
    (folder / "out").rename("frozen")
    finetune("resnet", *flags)
    after = load_file(folder / "out/final/model.safetensors")
    assert not any(
        torch.equal(before[name], after[f"resnet.{name}"]) for name in statistics_of_rows
    )


def test_a_model_that_is_not_ours(model: str, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    config = DistilBertConfig(
        vocab_size=len(tokenizer), dim=32, n_layers=1, n_heads=2, hidden_dim=64
    )
    DistilBertModel(config).save_pretrained(folder / "distil")
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(folder / "distil")
    finetune("distil", *FILES, *SHORT)


def test_a_decoder_without_padding_takes_the_tokenizers_and_one_without_a_start_is_refused(
    model: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    GPT2Model(
        GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=64)
    ).save_pretrained(folder / "gpt")
    T5Config(vocab_size=len(tokenizer), d_model=32).save_pretrained(folder / "t5")
    for name in ("gpt", "t5"):
        tokenizer.save_pretrained(folder / name)
    assert "decoder_start_token_id" in refusal(
        ["--model", "t5", "--train_file", "train.jsonl"], capsys
    )
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    finetune("gpt", *FILES, *SHORT)
    assert (
        json.loads((folder / "out/final/config.json").read_text())["pad_token_id"]
        == tokenizer.pad_token_id
    )


def test_the_head_of_other_classes_is_not_taken_over(model: str, folder: Path) -> None:

    def heads(*names: str) -> list[torch.Tensor]:
        labels = find_labels(list(names), Task(), description="labels")
        source = ClassifierSource("classifier", labels)
        return [source.build(seed).classifier.weight for seed in (1, 2)]

    config = BertConfig.from_pretrained(
        model, id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1}
    )
    BertForSequenceClassification.from_pretrained(model, config=config).save_pretrained(
        folder / "classifier"
    )
    own = load_file(folder / "classifier/model.safetensors")["classifier.weight"]
    for head in heads("bad", "good"):
        assert torch.equal(head, own), "the same classes: training goes on"
    first, second = heads("no", "yes")
    assert not torch.equal(first, own) and not torch.equal(first, second), (
        "other classes: a new head for each seed"
    )


def test_an_encoder_decoder_whose_outputs_hold_more_than_logits(model: str, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 64}
    heads = {
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
    }
    special = {
        "eos_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": 2,
    }
    config = BartConfig(
        vocab_size=len(tokenizer), decoder_start_token_id=2, **sizes, **heads, **special
    )
    BartModel(config).save_pretrained(folder / "bart")
    tokenizer.save_pretrained(folder / "bart")
    finetune("bart", *FILES, *SHORT)
    assert len(read_rows(folder / "out/seed-42/predictions_test.jsonl")) == 16


def test_images_with_augmentation(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import pipeline

    model = make_image_model(folder / "vit")
    flags = ["--dataset_name", "digits", "--augmentation", "crop", "--max_steps", "8"]
    results = finetune(model, *flags, "--mixed_precision", "no")
    predicted = read_rows(folder / "out/seed-42/predictions_validation.jsonl")
    assert 170 < len(predicted) < 190 and set(predicted[0]["probabilities"]) == {
        str(digit) for digit in range(10)
    }
    share = sum(row["label"] == row["prediction"] for row in predicted) / len(predicted)
    assert results["metrics"]["validation"]["accuracy"]["mean"] == pytest.approx(share)
    assert pipeline("image-classification", model="out/final").image_processor.size == {
        "height": 8,
        "width": 8,
    }
    (block,) = Path("out/final/README.md").read_text().split("```python")[1:]
    code = block.split("```")[0]
    assert 'path = "."' in code
    capsys.readouterr()
    exec(code.replace('path = "."', 'path = "out/final"'), {})
    assert capsys.readouterr().out.startswith(tuple("0123456789"))  # the class of a black image


def refusal(flags: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["finetune", "--output_dir", "out", *flags])
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert not Path("out").exists()
    return message


def test_columns_that_are_no_texts_are_not_decoded(model: str, folder: Path) -> None:
    rows: dict[str, list[Any]] = {
        key: [row[key] for row in sentences(24)] for key in ("text", "label")
    }
    rows["picture"] = [{"bytes": b"broken", "path": None}] * 24
    features = Features(
        {"text": Value("string"), "label": Value("string"), "picture": DatasetImage()}
    )
    Dataset.from_dict(rows, features=features).select(range(23, -1, -1)).save_to_disk("saved")
    finetune(model, "--dataset_name", "saved", *SHORT)
    texts = {row["text"] for row in read_rows(folder / "out/seed-42/predictions_validation.jsonl")}
    assert texts and texts <= set(rows["text"])


@pytest.mark.parametrize("is_regression", [False, True])
def test_a_training_that_diverges_is_said_and_exports_nothing(
    model: str, folder: Path, capsys: pytest.CaptureFixture[str], is_regression: bool
) -> None:
    rows = [
        row | {"label": number / 7} if is_regression else row
        for number, row in enumerate(sentences(32))
    ]
    write_rows(folder / "train.jsonl", rows)
    flags = [
        "--learning_rate",
        "1e9",
        "--max_grad_norm",
        "0",
        "--max_steps",
        "8",
        "--mixed_precision",
        "no",
    ]
    with pytest.raises(SystemExit) as stopped:
        finetune(model, "--train_file", "train.jsonl", "--validation_share", "0.5", *flags)
    assert stopped.value.code == 1
    assert "--learning_rate" in capsys.readouterr().err
    assert not (folder / "out/final").exists()


def test_what_was_interrupted_can_be_started_again(
    model: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(trainer: Any) -> None:
        (Path(trainer.args.output_dir) / "checkpoint-2").mkdir(parents=True)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("bert_pretrain.downstream.training.ClassifierTrainer.train", interrupted)
        with pytest.raises(SystemExit, match="130"):
            finetune(model, *FILES, *SHORT)
    assert not list((folder / "out").glob("[!.]*"))
    finetune(model, *FILES, *SHORT)
