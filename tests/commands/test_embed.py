"""`bert-pretrain embed` and `neighbours`: from files of all kinds to vectors and their nearest."""

from __future__ import annotations

import gzip
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from downstream_models import make_image_model, make_text_model
from PIL import Image
from transformers import AutoModel, AutoTokenizer

from bert_pretrain.__main__ import main
from bert_pretrain.embedding.loading import load_embedder

TEXTS = [
    "the list",
    "a value of the function is in a file of the index",
    "a",
    "names and types of the array",
    "to data",
]
CLASSES = ["ant", "bee"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with models, and the same texts and images in files of many kinds."""
    folder = tmp_path_factory.mktemp("made")
    make_text_model(folder / "bert")
    make_image_model(folder / "vit")
    labels = [number % 2 for number in range(len(TEXTS))]
    rows = [
        {"text": text, "label": CLASSES[label]} for text, label in zip(TEXTS, labels, strict=True)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "rows.json").write_text(json.dumps(rows))
    for name, mark in (("rows.csv", ","), ("rows.tsv", "\t")):
        cells = [f"text{mark}label"] + [f"{row['text']}{mark}{row['label']}" for row in rows]
        (folder / name).write_text("\n".join(cells) + "\n")
    (folder / "rows.txt").write_text("\n\n".join(TEXTS) + "\n")
    features = Features({"text": Value("string"), "label": ClassLabel(names=CLASSES)})
    data = Dataset.from_dict({"text": TEXTS, "label": labels}, features=features)
    data.to_parquet(folder / "rows.parquet")
    data.save_to_disk(folder / "saved")
    generator = np.random.default_rng(0)
    images = [
        Image.fromarray(generator.integers(256, size=(8, 8)).astype(np.uint8)) for _ in range(6)
    ]
    for number, image in enumerate(images):
        path = folder / f"photos/{CLASSES[number // 3]}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=CLASSES)})
    columns = {"image": images, "label": [0, 0, 0, 1, 1, 1]}
    Dataset.from_dict(columns, features=features).to_parquet(folder / "images.parquet")
    return folder


def embedded(made: Path, output: Path, *flags: str, model: str = "bert") -> Path:
    assert main(["embed", "--model", str(made / model), "--output", str(output), *flags]) == 0
    return output


@pytest.mark.parametrize(
    "name", ["rows.jsonl.gz", "rows.json", "rows.csv", "rows.tsv", "rows.txt", "rows.parquet"]
)
def test_every_kind_of_file_gives_the_same_rows_in_order(
    made: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = made / name
    output = embedded(
        made, tmp_path / "e.parquet", "--data_files", str(path), "--max_seq_length", "6"
    )
    table = pq.read_table(output)
    assert table.column_names == ["file", "file_row", "text", "label", "embedding"]
    assert table.column("text").to_pylist() == TEXTS
    assert table.column("file").to_pylist() == [str(path)] * 5
    assert table.column("file_row").to_pylist() == list(range(5))
    has_labels = name != "rows.txt"
    labels = [CLASSES[number % 2] if has_labels else None for number in range(5)]
    assert table.column("label").to_pylist() == labels
    expected = load_embedder(str(made / "bert")).embed(TEXTS[:1])
    found = np.stack(table.column("embedding").to_numpy())
    assert found.shape == (5, 32) and found.dtype == np.float32
    np.testing.assert_allclose(found[:1], expected, rtol=1e-4, atol=2e-6)
    printed = capsys.readouterr().out
    assert "5 texts, 32 numbers (float32)" in printed
    tokenizer = AutoTokenizer.from_pretrained(made / "bert")
    num_long = sum(len(row) > 6 for row in tokenizer(TEXTS)["input_ids"])
    assert 0 < num_long < 5 and f"{num_long} texts, after 6 tokens" in printed


def test_data_sets_folders_and_several_files_are_read_too(made: Path, tmp_path: Path) -> None:
    saved = embedded(made, tmp_path / "a.parquet", "--dataset_name", str(made / "saved"))
    table = pq.read_table(saved)
    assert table.column("text").to_pylist() == TEXTS
    assert table.column("label").to_pylist()[:2] == CLASSES
    for name in ("b.jsonl", "a.csv"):
        path = tmp_path / "folder" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            '{"body": "a", "kind": 3}\n{"body": "b"}' if name[0] == "b" else "body\nc\n"
        )
    flags = ["--data_files", str(tmp_path / "folder"), "--text_column", "body"]
    table = pq.read_table(embedded(made, tmp_path / "b.parquet", *flags))
    assert table.column("text").to_pylist() == ["c", "a", "b"]
    assert table.column("file_row").to_pylist() == [0, 0, 1]
    flags = ["--data_files", str(tmp_path / "folder/b.jsonl"), "--text_column", "body"]
    with pytest.raises(SystemExit):
        embedded(made, tmp_path / "c.parquet", *flags, "--label_column", "kind")
    (tmp_path / "folder/b.jsonl").write_text('{"body": "a", "kind": 3}\n{"body": "b", "kind": [1]}')
    table = pq.read_table(embedded(made, tmp_path / "c.parquet", *flags, "--label_column", "kind"))
    assert table.column("label").to_pylist() == ["3", "[1]"]


def test_images_of_a_folder_and_of_a_table_are_the_same(made: Path, tmp_path: Path) -> None:
    table = pq.read_table(
        embedded(
            made, tmp_path / "a.parquet", "--data_files", str(made / "images.parquet"), model="vit"
        )
    )
    flags = ["--dataset_name", str(made / "photos")]
    of_folder = pq.read_table(embedded(made, tmp_path / "b.parquet", *flags, model="vit"))
    assert of_folder.column("label").to_pylist() == ["ant"] * 3 + ["bee"] * 3
    assert table.column("label") == of_folder.column("label")
    assert table.column("embedding") == of_folder.column("embedding")
    paths = of_folder.column("path").to_pylist()
    assert paths == [str(made / f"photos/{CLASSES[n // 3]}/{n}.png") for n in range(6)]


def test_image_files_and_shards_give_the_vectors_of_their_folder(
    made: Path, tmp_path: Path
) -> None:
    flags = ["--dataset_name", str(made / "photos")]
    expected = pq.read_table(embedded(made, tmp_path / "a.parquet", *flags, model="vit"))
    files = sorted(map(str, (made / "photos").rglob("*.png")))
    flags = ["--data_files", files[0], str(made / "photos/*/*.png")]
    found = pq.read_table(embedded(made, tmp_path / "b.parquet", *flags, model="vit"))
    assert found.column("path").to_pylist() == found.column("file").to_pylist() == files
    assert found.column("file_row").to_pylist() == [0] * 6
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for file in files:
            shard.add(file, Path(file).name)
    flags = ["--data_files", str(tmp_path / "shard.tar")]
    of_shard = pq.read_table(embedded(made, tmp_path / "c.parquet", *flags, model="vit"))
    for table in (found, of_shard):
        assert table.column("embedding") == expected.column("embedding")


def test_an_undecodable_image_is_skipped_and_named_where_asked(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        source = made / f"photos/ant/{number}.png"
        (folder / source.name).write_bytes(source.read_bytes()[: 40 if number == 1 else None])
    flags = ["--dataset_name", str(folder)]
    with pytest.raises(SystemExit) as stopped:
        embedded(made, tmp_path / "a.npy", *flags, model="vit")
    assert stopped.value.code == 2 and "1.png cannot be decoded" in capsys.readouterr().err
    embedded(made, tmp_path / "a.npy", *flags, "--on_bad_image", "skip", model="vit")
    printed = capsys.readouterr().out
    assert "skipped          1:" in printed and "1.png (" in printed
    rows = pq.read_table(tmp_path / "a.rows.parquet")
    assert np.load(tmp_path / "a.npy").shape == (2, 32)
    assert rows.column("file_row").to_pylist() == [0, 2]


def neighbours(flags: list[str], folder: Path) -> list[dict]:
    path = folder / "found.json"
    assert main(["neighbours", *flags, "--json", str(path)]) == 0
    return json.loads(path.read_text())["results"]


def test_a_text_finds_itself_first_and_a_row_the_others(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data_files", str(made / "rows.csv"), "--pooling", "cls", "--max_seq_length", "9"]
    bank = ["--embeddings", str(embedded(made, tmp_path / "bank.npy", *flags))]
    matrix = np.load(tmp_path / "bank.npy")
    units = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    found = neighbours([*bank, "--text", TEXTS[3], TEXTS[0], "--k", "2"], tmp_path)
    for result, row in zip(found, (3, 0), strict=True):
        first, second = result["neighbours"]
        assert first["row"] == row and first["text"] == TEXTS[row] == result["query"]
        assert first["cosine"] == pytest.approx(1, abs=1e-5)
        assert second["cosine"] == pytest.approx(np.sort(units @ units[row])[-2], abs=1e-5)
    (result,) = neighbours([*bank, "--row", "3"], tmp_path)
    expected = [row for row in np.argsort(-(units @ units[3])) if row != 3]
    assert [other["row"] for other in result["neighbours"]] == expected
    assert result["neighbours"][0]["label"] == CLASSES[expected[0] % 2]
    printed = capsys.readouterr().out
    assert f"{TEXTS[expected[0]]}  [{CLASSES[expected[0] % 2]}]" in printed
    assert f"rows.csv:{expected[0]}" in printed


def test_an_image_finds_itself_among_images(made: Path, tmp_path: Path) -> None:
    flags = ["--dataset_name", str(made / "photos")]
    bank = embedded(made, tmp_path / "bank.parquet", *flags, model="vit")
    query = made / "photos/bee/4.png"
    found = neighbours(["--embeddings", str(bank), "--image", str(query), "--k", "3"], tmp_path)
    first = found[0]["neighbours"][0]
    assert first["path"] == str(query) and first["label"] == "bee" and first["row"] == 4


def test_a_range_of_levels_is_asked_for_given_and_kept_for_queries(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans, plain = tmp_path / "scans", tmp_path / "plain"
    for number in range(3):
        pixels = np.random.default_rng(number).integers(256, size=(8, 8))
        for folder, levels in ((scans, pixels.astype(np.int32)), (plain, pixels.astype(np.uint8))):
            folder.mkdir(exist_ok=True)
            Image.fromarray(levels).save(folder / f"{number}.tiff")
    flags = ["--model", str(made / "vit"), "--dataset_name", str(scans), "--output"]
    path = str(tmp_path / "scans.parquet")
    assert "no other image tells which" in refusal(["embed", *flags, path], capsys)
    bank = embedded(made, Path(path), *flags[2:4], "--pixel_range", "0:255", model="vit")
    expected = embedded(made, tmp_path / "b.parquet", "--dataset_name", str(plain), model="vit")
    columns = [pq.read_table(file).column("embedding") for file in (bank, expected)]
    assert columns[0] == columns[1]
    query = ["--embeddings", str(bank), "--image", str(scans / "1.tiff"), "--k", "1"]
    (found,) = neighbours(query, tmp_path)
    assert found["neighbours"][0]["row"] == 1
    assert found["neighbours"][0]["cosine"] == pytest.approx(1, abs=1e-5)


def refusal(flags: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(flags)
    assert stopped.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: ")
    return message


def test_queries_of_another_model_or_kind_are_refused(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_text_model(tmp_path / "bert")
    data = ["--data_files", str(made / "rows.csv")]
    path = str(tmp_path / "bank.parquet")
    main(["embed", "--model", model, "--output", path, *data])
    search = ["neighbours", "--embeddings", path]
    for flags, expected in (
        (["--image", "a.png"], "holds texts but --image asks for others; pass --text or --row"),
        ([], "nothing is given to seek the nearest of; pass one of --text, --image and --row"),
        (["--text", "a", "--row", "1"], "--text and --row is given"),
        (["--row", "5"], "--row is 5 but must be in 0..4"),
        (["--row", "1", "--k", "0"], "--k is 0 but must be at least 1"),
        (["--text", "a", "--model", str(made / "vit")], "--max_seq_length means nothing"),
    ):
        assert expected in refusal([*search, *flags], capsys)
    wide = make_text_model(tmp_path / "wide", hidden_size=48)
    message = refusal([*search, "--text", "a", "--model", wide], capsys)
    assert "makes vectors of 48 numbers but" in message and "has 32; pass the --model" in message
    changed = AutoModel.from_pretrained(model)
    changed.embeddings.word_embeddings.weight.data[7] += 1  # as a run that went on does
    changed.save_pretrained(model)
    message = refusal([*search, "--text", "a"], capsys)
    assert "the model of" in message and "no longer those that made" in message


BAD = {
    "nothing to embed": ("", "there is nothing to embed; pass --data_files or --dataset_name"),
    "two sources": ("--data_files rows.csv --dataset_name saved", "pass one"),
    "no such file": ("--data_files none.csv", "there is no file 'none.csv'"),
    "empty file": ("--data_files empty.csv", "empty.csv is empty"),
    "no rows": ("--data_files header.csv", "header.csv holds nothing to embed"),
    "no such column": ("--data_files rows.csv --text_column body", "--text_column"),
    "no such label": ("--data_files rows.csv --label_column kind", "--label_column"),
    "null": ("--data_files null.jsonl", "row 1 of null.jsonl holds None, which is not a text"),
    "half a character": ("--data_files half.jsonl", "holds half a character"),
    "images for a text model": ("--data_files images.parquet", "no column 'text'"),
    "suffix": ("--data_files rows.csv --output e.csv", "pass --output a .parquet or .npy"),
    "exists": ("--data_files rows.csv --output rows.parquet", "rows.parquet exists; pass another"),
    "folder": ("--data_files rows.csv --output dot.npy", "dot.npy is a folder"),
    "below a file": ("--data_files rows.csv --output rows.csv/e.npy", "--output"),
    "no model": ("--data_files rows.csv --model nowhere/at-all", "--model"),
    "NaN": ("--data_files rows.csv --model nan", "hold NaN or infinity"),
    "torn": ("--data_files rows.csv --model torn", "lacks 1 weights of its encoder"),
    "no tokenizer": ("--data_files rows.csv --model bare", "tokenizer"),
    "no processor": ("--dataset_name photos --model blind", "no usable image processor"),
    "long rows": ("--data_files rows.csv --max_seq_length 65", "in 3..64 for this model, or 0"),
    "no batch": ("--data_files rows.csv --per_device_eval_batch_size 0", "at least 1"),
    "flags of images": ("--data_files rows.csv --on_bad_image skip", "an encoder of texts"),
    "flags of texts": ("--dataset_name photos --model vit --text_column a", "an encoder of images"),
    "pooling of images": ("--dataset_name photos --model vit --pooling cls", "--pooling means"),
    "no images": ("--dataset_name bert --model vit", "holds no images"),
    "unknown flag": ("--data_files rows.csv --batch 3", "--batch"),
}


@pytest.fixture(scope="module")
def bad(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what is wrong, beside links to what is right."""
    folder = tmp_path_factory.mktemp("bad")
    for path in made.iterdir():
        (folder / path.name).symlink_to(path)
    for name, content in {
        "empty.csv": "",
        "header.csv": "text,label\n",
        "null.jsonl": '{"text": "a"}\n{"text": null}\n',
        "half.jsonl": '{"text": "\\ud83d"}\n',
    }.items():
        (folder / name).write_text(content)
    (folder / "dot.npy").mkdir()
    for name, model in (("nan", "bert"), ("torn", "bert"), ("bare", "bert"), ("blind", "vit")):
        loaded = AutoModel.from_pretrained(made / model)
        state = loaded.state_dict()
        if name == "nan":
            state["embeddings.word_embeddings.weight"][3] = float("nan")
        if name == "torn":
            del state["encoder.layer.1.output.dense.weight"]
        loaded.save_pretrained(folder / name, state_dict=state)
        if name in ("nan", "torn"):
            AutoTokenizer.from_pretrained(made / model).save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_message_and_leaves_nothing(
    case: str, bad: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(bad)
    before = sorted(path.name for path in bad.iterdir())
    flags, expected = BAD[case]
    words = flags.split()
    if "--model" not in words:
        words += ["--model", "bert"]
    if "--output" not in words:
        words += ["--output", "e.parquet"]
    message = refusal(["embed", *words], capsys)
    assert expected in message
    assert sorted(path.name for path in bad.iterdir()) == before


def test_several_processes_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "2 processes were started" in refusal(["embed"], capsys)
