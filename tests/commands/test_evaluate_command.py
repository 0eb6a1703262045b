"""`bert-pretrain evaluate`: its figures are those of stock tools; bad input gets one message."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PillowImage
from sklearn.neighbors import KNeighborsClassifier
from transformers import (
    AutoImageProcessor,
    BertConfig,
    BertForMaskedLM,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
    pipeline,
)

from bert_pretrain.__main__ import main
from bert_pretrain.commands import evaluate
from bert_pretrain.commands.suites.context import run_record
from bert_pretrain.config.evaluating import FLOORS, EvaluateArguments, LabelEfficiencyArguments
from bert_pretrain.errors import InputError
from bert_pretrain.evaluation.features import compute_features, divide_labelled
from bert_pretrain.evaluation.label_efficiency_arms import ARMS
from bert_pretrain.images.corpus import open_images
from bert_pretrain.models.image_encoder import new_encoder
from bert_pretrain.models.image_processor import read_processor
from bert_pretrain.text.tokenizers import load_tokenizer

MEAN, STD = 0.3, 0.37
CLASSES = ("ant", "bee", "cat")
PREFIXES = ("", "random_encoder_", "pixels_", "pca_")


def save_encoder(
    folder: Path, *, image_size: int = 8, num_channels: int = 1, seed: int = 0, **fields: Any
) -> Path:
    """Save a small random ViT with its image processor."""
    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=image_size,
        patch_size=4,
        num_channels=num_channels,
        **fields,
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    size = {"height": image_size, "width": image_size}
    channels = num_channels
    ViTImageProcessorPil(
        size=size, image_mean=[MEAN] * channels, image_std=[STD] * channels
    ).save_pretrained(folder)
    return folder


def save_bert(folder: Path, *, cls: Any = BertForMaskedLM, seed: int = 0) -> Path:
    """Save a small random BERT with the shipped tokenizer."""
    torch.manual_seed(seed)
    tokenizer = load_tokenizer(None)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=1.0,
    )
    cls(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_parquet(path: Path, rows: Sequence[tuple[int, str | None]]) -> str:
    """Write 8 x 8 colour images drawn from the number, with class names as labels."""
    images = [
        PillowImage.fromarray(
            np.random.default_rng(number).integers(256, size=(8, 8, 3)).astype(np.uint8)
        )
        for number, _ in rows
    ]
    features = Features({"image": Image(), "kind": Value("string")})
    Dataset.from_dict(
        {"image": images, "kind": [name for _, name in rows]}, features=features
    ).to_parquet(path)
    return str(path)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_encoder(folder / "vit", hidden_dropout_prob=0.5)  # must not make figures random
    save_encoder(folder / "colour", num_channels=3)
    save_bert(folder / "bert")
    write_parquet(folder / "plain.parquet", [(number, "cat") for number in range(8)])
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr("bert_pretrain.images.corpus.HF_HOME", str(tmp_path / "hf"))


def figures_of(flags: list[str], folder: Path) -> dict[str, float]:
    target = folder / "figures.json"
    assert main(["evaluate", *flags, "--json", str(target)]) == 0
    record = json.loads(target.read_text())
    assert record.keys() >= {"figures", "details", "hardware", "versions"}
    figures: dict[str, float] = record["figures"]
    return figures


def stock_features(folder: Path, pixels: np.ndarray) -> np.ndarray:
    """Embed as a user of transformers would: the saved processor, the saved model, its [CLS]."""
    processor = AutoImageProcessor.from_pretrained(folder)
    images = [PillowImage.fromarray(image[:, :, 0]).convert("L") for image in pixels]
    values = processor(
        [np.array(image)[:, :, None] for image in images], input_data_format="channels_last"
    )
    with torch.no_grad():
        output = ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()(
            torch.tensor(np.array(values["pixel_values"]))
        )
    return output.last_hidden_state[:, 0].numpy()


def test_knn_on_digits_is_that_of_scikit_learn_on_features_of_stock_transformers(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = figures_of(
        ["--model", str(models / "vit"), "--suite", "knn", "linear_probe", "--k", "7"], tmp_path
    )
    corpus = open_images(dataset_name="digits", validation_share=0.2, seed=42)
    assert corpus.labels is not None
    features = stock_features(models / "vit", np.asarray(corpus.pixels))
    train, test = corpus.train_images, corpus.validation_images
    theirs = KNeighborsClassifier(
        7, metric="cosine", algorithm="brute", weights=lambda d: np.exp(-d / 0.07)
    )
    theirs.fit(features[train], corpus.labels[train])
    # A query whose seventh and eighth neighbours are equally far in float32 may go either way.
    assert figures["knn_accuracy"] == pytest.approx(
        theirs.score(features[test], corpus.labels[test]), abs=1.5 / len(test)
    )
    assert figures.keys() == {
        f"{floor}{suite}_accuracy" for floor in PREFIXES for suite in ("knn", "linear_probe")
    } | {"majority_accuracy"}
    assert figures["pixels_knn_accuracy"] > 0.95
    # Features of a random encoder need a weak penalty: with the strongest one all guess one class.
    assert figures["linear_probe_accuracy"] > 0.75
    assert figures["majority_accuracy"] < 0.2
    printed = capsys.readouterr().out
    assert "digits" in printed
    for name in ("this encoder", "the same, untrained", "raw pixels", "PCA of the pixels"):
        assert printed.count(f"\n{name} ") == 2


def test_the_same_command_gives_the_same_figures_and_another_seed_others(
    models: Path, tmp_path: Path
) -> None:
    flags = ["--model", str(models / "vit"), "--suite", "knn"]
    first = figures_of(flags, tmp_path)
    assert figures_of(flags, tmp_path) == first
    other = figures_of([*flags, "--seed", "7"], tmp_path)
    assert other["random_encoder_knn_accuracy"] != first["random_encoder_knn_accuracy"]


def test_a_run_says_which_images_its_model_did_not_see(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {
        "dataset_name": "digits",
        "validation_share": 0.1,
        "seed": 5,
        "image_size": 0,
        "num_channels": 0,
    }
    record = {"config": config, "sources": {"data": open_images(**config).provenance}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    save_encoder(tmp_path / "final")
    save_encoder(tmp_path / "checkpoints/step-000100")
    flags = f"--model {models}/vit --suite knn --seed 5 --validation_share 0.1"
    expected = figures_of(flags.split(), tmp_path)
    capsys.readouterr()
    for folder in ("final", "checkpoints/step-000100"):
        assert (
            figures_of(["--model", str(tmp_path / folder), "--suite", "knn"], tmp_path) == expected
        )
        assert "note:" not in capsys.readouterr().out
    figures_of(["--model", str(tmp_path / "final"), "--suite", "knn", "--seed", "6"], tmp_path)
    assert "divided its data otherwise" in capsys.readouterr().out


def test_classes_of_test_files_are_matched_by_name(models: Path, tmp_path: Path) -> None:
    """The test images are some of the others, so that each is its own nearest neighbour."""
    rows = [(number, CLASSES[number % 3]) for number in range(30)]
    others = write_parquet(tmp_path / "train.parquet", rows)
    test = write_parquet(tmp_path / "test.parquet", [row for row in rows if row[1] != "ant"])
    flags = f"--model {models}/colour --suite knn --k 1 --data_files {others} --test_files {test}"
    figures = figures_of([*flags.split(), "--label_column", "kind"], tmp_path)
    assert all(figures[f"{kind}knn_accuracy"] == 1.0 for kind in ("", "pixels_", "pca_"))


def write_splits(folder: Path) -> Path:
    """Write 24 images to learn from and 12 of the same ones to evaluate on, in three classes."""
    for split, count in (("Train", 24), ("val", 12)):
        for number in range(count):
            pixels = np.random.default_rng(number).integers(256, size=(8, 8, 3)).astype(np.uint8)
            path = folder / split / CLASSES[number % 3] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            PillowImage.fromarray(pixels).save(path)
    return folder


def test_a_named_split_of_a_folder_is_evaluated_on_and_another_one_is_the_bank(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_splits(tmp_path / "photographs")
    flags = f"--model {models}/colour --suite knn --k 1 --dataset_name {folder} --test_split VAL"
    figures = figures_of(flags.split(), tmp_path)
    assert all(figures[f"{kind}knn_accuracy"] == 1.0 for kind in ("", "pixels_", "pca_"))
    printed = capsys.readouterr().out
    assert "24 images with labels learnt from, 12 evaluated" in printed
    assert "note: 12 of the 12 images evaluated on are in the bank too" in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--test_split none", "has no split 'none'; it has Train, val; change --test_split"),
        ("--test_split TRAIN", "--test_split is 'TRAIN', which is the bank too"),
        ("--test_split val --test_files a.parquet", "both name the evaluation images"),
    ],
)
def test_a_split_that_cannot_be_evaluated_on_is_refused(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: str, message: str
) -> None:
    folder = write_splits(tmp_path / "photographs")
    command = f"evaluate --model {models}/colour --suite knn --dataset_name {folder} {flags}"
    with pytest.raises(SystemExit) as stopped:
        main(command.split())
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_the_images_of_the_run_are_the_default_unless_others_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(number, CLASSES[number % 3]) for number in range(30)]
    files = [write_parquet(tmp_path / "own.parquet", rows)]
    config = {
        "data_files": files,
        "label_column": "kind",
        "validation_share": 0.3,
        "seed": 1,
        "image_size": 0,
    }
    (tmp_path / "run.json").write_text(json.dumps({"config": config}))
    model = save_encoder(tmp_path / "final", num_channels=3)
    flags = ["evaluate", "--model", str(model), "--suite", "knn"]
    assert main(flags) == 0
    assert "21 images with labels learnt from, 9 evaluated" in capsys.readouterr().out
    assert main([*flags, "--dataset_name", "digits", "--label_column", "label"]) == 0
    printed = capsys.readouterr().out
    assert "handwritten digits" in printed and "note:" not in printed


def test_the_flags_of_an_exported_model_are_those_of_its_run_not_the_public_ones(
    tmp_path: Path,
) -> None:
    final = save_encoder(tmp_path / "run" / "final")
    for folder, path in ((final.parent, "/data/own.parquet"), (final, "own.parquet")):
        (folder / "run.json").write_text(json.dumps({"config": {"data_files": [path]}}))
    for model in (final, final.parent):
        assert run_record(str(model))["config"] == {"data_files": ["/data/own.parquet"]}
    (final.parent / "run.json").unlink()
    assert run_record(str(final))["config"] == {"data_files": ["own.parquet"]}, "downloaded alone"


def test_a_damaged_record_of_a_run_is_not_taken_for_none(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"config": {"see')
    with pytest.raises(InputError, match="damaged"):
        run_record(str(tmp_path))


def test_images_without_a_label_are_left_out(tmp_path: Path) -> None:
    rows = [(number, None if number % 4 else CLASSES[number % 3]) for number in range(40)]
    files = [write_parquet(tmp_path / "own.parquet", rows)]
    corpus = open_images(data_files=files, label_column="kind", validation_share=0.25, seed=0)
    images = divide_labelled(corpus, None)
    assert corpus.labels is not None
    assert len(images.train_labels) + len(images.test_labels) == 10
    expected = [row for row in corpus.train_images if corpus.labels[row] >= 0]
    assert (images.train_pixels == corpus.pixels[expected]).all()
    assert (images.train_labels == corpus.labels[expected]).all()


def test_floors_are_an_untrained_encoder_by_seed_the_pixels_and_as_many_components(
    models: Path,
) -> None:
    corpus = open_images(dataset_name="digits", validation_share=0.2, seed=42)
    images, preprocessing = divide_labelled(corpus, None), read_processor(str(models / "vit"))
    assert preprocessing.image_size == 8
    assert preprocessing.mean + preprocessing.std == pytest.approx([MEAN, STD])
    first, second = (
        {features.key: features for features in found}
        for found in (
            compute_features(
                str(models / "vit"), images, preprocessing, batch_size=512, seed=seed, floors=FLOORS
            )
            for seed in (1, 2)
        )
    )
    assert list(first) == ["encoder", "random_encoder", "pixels", "pca"]
    assert (first["encoder"].test == second["encoder"].test).all()
    assert not np.allclose(first["random_encoder"].test, second["random_encoder"].test, atol=0.1)
    assert not np.allclose(first["random_encoder"].test, first["encoder"].test, atol=0.1)
    assert [features.train.shape[1] for features in first.values()] == [16, 16, 64, 16]
    # Untrained is as pretraining begins.
    torch.manual_seed(1)
    encoder = new_encoder(ViTConfig.from_pretrained(models / "vit")).eval()
    scaled = torch.from_numpy((images.test_pixels[:, :, :, 0] / 255 - MEAN) / STD).float()
    with torch.no_grad():
        expected = encoder.vit(scaled[:, None]).last_hidden_state[:, 0].numpy()
    np.testing.assert_allclose(first["random_encoder"].test, expected, rtol=1e-3, atol=1e-4)
    alone = compute_features(
        str(models / "vit"), images, preprocessing, batch_size=512, seed=1, floors=["none"]
    )
    assert [features.key for features in alone] == ["encoder"]
    assert (alone[0].test == first["encoder"].test).all()
    pixels = images.test_pixels.reshape(len(images.test_pixels), -1)
    np.testing.assert_allclose(
        first["pixels"].test, (pixels / 255 - MEAN) / STD, rtol=1e-5, atol=1e-5
    )
    assert np.abs(first["pca"].train.mean(axis=0)).max() < 1e-4  # centred on the images learnt from


def test_fill_mask_says_what_the_pipeline_of_transformers_says(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = "The function returns a [MASK] value."
    flags = f"--model {models}/bert --suite fill_mask --num_candidates 3".split()
    flags += ["--sentences", sentence]
    target = tmp_path / "figures.json"
    assert main(["evaluate", *flags, "--json", str(target)]) == 0
    record = json.loads(target.read_text())
    (row,) = record["details"]["fill_mask"]
    theirs = pipeline("fill-mask", model=str(models / "bert"), device="cpu")(sentence, top_k=3)
    assert [word for word, _ in row["candidates"]] == [found["token_str"] for found in theirs]
    assert [p for _, p in row["candidates"]] == pytest.approx(
        [found["score"] for found in theirs], abs=2e-6
    )
    assert record["figures"]["fill_mask_entropy"] == row["entropy"] > 0
    assert theirs[0]["token_str"] in capsys.readouterr().out


def test_a_run_directory_shows_every_checkpoint_in_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, step in enumerate((20, 100, 3)):
        save_bert(tmp_path / f"checkpoints/step-{step:06d}", seed=seed)
    sentences = ["The [MASK] is a [MASK].", "A list of [MASK]."]
    flags = ["evaluate", "--model", str(tmp_path), "--suite", "fill_mask"]
    assert main([*flags, "--sentences", *sentences]) == 0
    printed = capsys.readouterr().out
    steps = [line.split()[0] for line in printed.splitlines() if "entropy" in line]
    assert steps == ["step-000003", "step-000020", "step-000100"] * 3  # three [MASK]


def test_a_run_follows_the_last_models_answer_through_checkpoints_and_final(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = "A list of [MASK]."
    for seed, folder in enumerate(("checkpoints/step-000010", "checkpoints/step-000020", "final")):
        save_bert(tmp_path / folder, seed=seed)
    flags = ["--model", str(tmp_path), "--suite", "fill_mask", "--sentences", sentence, "--json"]
    assert main(["evaluate", *flags, str(tmp_path / "figures.json")]) == 0
    rows = json.loads((tmp_path / "figures.json").read_text())["details"]["fill_mask"]
    assert [row["model"] for row in rows] == ["step-000010", "step-000020", "final"]
    (answer,) = pipeline("fill-mask", model=str(tmp_path / "final"), device="cpu")(
        sentence, top_k=1
    )
    for row, folder in zip(
        rows, ("checkpoints/step-000010", "checkpoints/step-000020", "final"), strict=True
    ):
        assert row["original"] == answer["token_str"]
        everything = pipeline("fill-mask", model=str(tmp_path / folder), device="cpu")(
            sentence, top_k=8192
        )
        scores = {found["token"]: found["score"] for found in everything}
        assert row["probability"] == pytest.approx(scores[answer["token"]], abs=2e-6)
        assert row["entropy"] == pytest.approx(
            -sum(p * np.log(p) for p in scores.values()), abs=1e-3
        )


def test_what_a_run_recorded_while_training_is_shown_unless_other_sentences_are_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_bert(tmp_path / "checkpoints/step-000200")
    row = {
        "sentence": "no [MASK] here.",
        "position": 2,
        "original": "one",
        "probability": 0.1,
        "entropy": 3.5,
    }
    lines = [
        json.dumps({"step": step} | row | {"candidates": [["word", 0.2]]}) for step in (0, 100, 200)
    ]
    (tmp_path / "fill_mask.jsonl").write_text("\n".join(lines) + "\n")
    flags = ["evaluate", "--model", str(tmp_path), "--suite", "fill_mask"]
    assert main(flags) == 0
    printed = capsys.readouterr().out
    assert printed.count("p(one) 0.100") == 3 and "step-000100" in printed
    assert main([*flags, "--sentences", "A [MASK]."]) == 0
    assert "p(one)" not in capsys.readouterr().out
    (tmp_path / "fill_mask.jsonl").write_text('{"step":\n')
    with pytest.raises(SystemExit):
        main(flags)
    assert "fill_mask.jsonl, line 1, is not JSON" in capsys.readouterr().err


def test_a_suite_is_one_entry_of_the_registry_and_run_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(
        evaluate.SUITES,
        "letters",
        lambda e: evaluate.SuiteResult("counted", {"letters": len(e.options.model)}, None),
    )
    assert figures_of(["--model", "abc", "--suite", "letters", "letters"], tmp_path) == {
        "letters": 3
    }
    assert capsys.readouterr().out == "\nletters\ncounted\n"


def test_what_a_run_says_of_its_model_is_refused_before_any_suite_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_bert(tmp_path / "run/final")
    (tmp_path / "run/run.json").write_text('{"config": {"objective": "mlm"}}')
    flags = f"evaluate --model {tmp_path}/run --json {tmp_path}/figures.json --suite".split()
    for suites, expected in (
        (["fill_mask", "nsp"], "by the objective mlm"),
        (["fill_mask", "knn"], "image processor"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*flags, *suites])
        printed = capsys.readouterr()
        assert stopped.value.code == 2 and expected in printed.err and printed.out == ""
    assert not (tmp_path / "figures.json").exists()


def test_images_without_labels_are_refused_before_any_suite_begins(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(evaluate.SUITES, "letters", lambda _: pytest.fail("begun"))
    flags = f"evaluate --model {models}/colour --data_files {models}/plain.parquet".split()
    with pytest.raises(SystemExit):
        main([*flags, "--suite", "letters", "linear_probe"])
    assert "--label_column" in capsys.readouterr().err


def test_a_suite_that_fails_takes_nothing_away_from_those_before_it(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "figures.json"
    flags = ["evaluate", "--model", str(models / "bert"), "--json", str(target), "--suite"]
    with pytest.raises(SystemExit) as stopped:  # of a masked language model without another head
        main([*flags, "fill_mask", "nsp", "minimal_pairs"])
    printed = capsys.readouterr()
    assert stopped.value.code == 2 and "next-sentence head" in printed.err
    assert f"{target} has what was found before nsp" in printed.out
    record = json.loads(target.read_text())
    assert record["missing"] == ["nsp", "minimal_pairs"] and list(record["details"]) == [
        "fill_mask"
    ]
    assert main([*flags, "fill_mask"]) == 0
    assert record == json.loads(target.read_text()) | {"missing": record["missing"]}


def refusal(flags: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(flags)
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    return message.removeprefix("error: ").strip()


COMMANDS = {suite: ["evaluate", "--suite", suite] for suite in evaluate.SUITES}
TRAINING = ["--train_file", "t.jsonl", "--output_dir", "out"]
TRAINING_COMMANDS = {
    "label_efficiency": ["evaluate", "--suite", "label_efficiency", *TRAINING],
    "finetune": ["finetune", *TRAINING],
}


@pytest.mark.parametrize("command", [*COMMANDS, *TRAINING_COMMANDS])
def test_every_command_says_the_same_of_a_name_that_is_no_model(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = (COMMANDS | TRAINING_COMMANDS)[command]
    for name in (
        "./nowhere",
        "run/final",
        "/no/such/folder",
        "checkpoints/step-000100/",
        "here/model",
    ):
        (tmp_path / "here").mkdir(exist_ok=True)
        message = refusal([*flags, "--model", name], capsys)
        assert (
            message
            == f"there is no folder {name!r}; pass the folder or Hub id of a transformers model as "
            "--model"
        )
    assert (
        "nor" in (message := refusal([*flags, "--model", "someone/bert"], capsys))
        and "on the Hub" in message
    )
    (tmp_path / "weights").write_text("x")
    assert "'weights' is a file" in refusal([*flags, "--model", "weights"], capsys)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text('{"config": {}}')
    message = refusal([*flags, "--model", "run"], capsys)
    assert message.startswith(
        "'run' is a run that holds neither a complete checkpoint nor final/ yet; pass another"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", TRAINING_COMMANDS)
def test_what_trains_on_a_model_asks_for_that_of_a_run(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("checkpoints/step-000020", "checkpoints/step-000100", "final"):
        save_bert(tmp_path / "run" / folder)
        save_bert(tmp_path / "run/checkpoints/step-000200.tmp")  # as a kill leaves it
        message = refusal([*TRAINING_COMMANDS[command], "--model", "run"], capsys)
        assert message.endswith(f", run/{folder}, as --model")


@pytest.mark.parametrize("suite", [*evaluate.SUITES, "label_efficiency"])
@pytest.mark.parametrize("rank", ["0", "1"])
def test_several_processes_are_refused_with_one_message_and_none_writes(
    suite: str,
    rank: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as stopped:
        main(f"evaluate --model nowhere --suite {suite} --json {tmp_path}/figures.json".split())
    assert stopped.value.code == 2 and not list(tmp_path.iterdir())
    printed = capsys.readouterr()
    expected = "error: 2 processes were started but evaluation is done by one process; start it "
    assert printed.out == "" and printed.err.count("\n") == 1
    assert printed.err.startswith(expected if rank == "0" else f"process {rank}: {expected}")


def test_the_help_names_every_suite_and_every_arm() -> None:
    for group, name, names in (
        (EvaluateArguments, "suite", evaluate.SUITES),
        (LabelEfficiencyArguments, "arms", ARMS),
    ):
        text = group.__dataclass_fields__[name].metadata["help"]
        assert all(f" {word}" in text for word in names)


def test_debug_lets_the_exception_through(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`suite`"):
        main(["evaluate", "--model", "x", "--suite", "none", "--debug"])


def test_weights_that_are_cut_short_are_called_so(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(models / "bert", tmp_path / "cut")
    weights = tmp_path / "cut/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", "--model", str(tmp_path / "cut"), "--suite", "fill_mask"])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert f"the weights of {tmp_path}/cut cannot be read" in error and "--model" in error


def test_a_command_judges_beside_the_floors_that_it_names(models: Path, tmp_path: Path) -> None:
    flags = ["--model", str(models / "vit"), "--suite", "knn", "--floors", "pca"]
    assert figures_of(flags, tmp_path).keys() == {
        "knn_accuracy",
        "pca_knn_accuracy",
        "majority_accuracy",
    }
