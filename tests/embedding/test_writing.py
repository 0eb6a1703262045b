"""A file of embeddings is whole or not there, and the same however often it was interrupted."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from downstream_models import make_image_model, make_text_model
from filelock import FileLock
from PIL import Image
from runs import ROOT, WORDS, environment

from bert_pretrain.data import run_folder
from bert_pretrain.embedding import images as image_module
from bert_pretrain.embedding import texts as text_module
from bert_pretrain.embedding import writing
from bert_pretrain.embedding.embedder import Embedder, Window
from bert_pretrain.embedding.loading import EmbeddingRule, load_embedder
from bert_pretrain.embedding.rows import Row, RowSource, open_image_rows, open_text_rows
from bert_pretrain.embedding.writing import embed_to_file
from bert_pretrain.errors import InputError
from bert_pretrain.text.documents import TextSource

ROWS_OF_A_PART = 5

# Embeds as the command does, in parts of five rows, and is killed while it writes the third.
KILLED = """
import os, signal, sys
from bert_pretrain.__main__ import main
from bert_pretrain.embedding import texts, writing
texts.ROWS_OF_A_WINDOW = 5
write = writing.write_table
def write_or_die(table, path, record):
    write(table, path, record)
    if path.name.startswith("part-000002"):
        os.kill(os.getpid(), signal.SIGKILL)
writing.write_table = write_or_die
main(["embed", *sys.argv[1:]])
"""


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "ROWS_OF_A_WINDOW", ROWS_OF_A_PART)
    monkeypatch.setattr(image_module, "ROWS_OF_A_WINDOW", ROWS_OF_A_PART)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model and 23 rows of each kind; row 7 of both is bad."""
    folder = tmp_path_factory.mktemp("embedding")
    make_text_model(folder / "bert")
    make_image_model(folder / "vit")
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(WORDS, generator.integers(1, 80))) for _ in range(23)]
    rows = [{"text": text, "label": number % 3} for number, text in enumerate(texts)]
    (folder / "good.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows[7]["text"] = None
    (folder / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number in range(23):
        path = folder / f"photos/{'ab'[number % 2]}/{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(256, size=(9, 8)).astype(np.uint8)).save(path)
    return folder


def text_rows(folder: Path, name: str = "good.jsonl") -> RowSource:
    # As the command reads it.
    return open_text_rows(TextSource(data_files=[str(folder / name)], document_boundary="line"))


@cache
def loaded(model: Path) -> Embedder:
    return load_embedder(str(model))


def opened(folder: Path, kind: str) -> tuple[Embedder, RowSource]:
    if kind == "text":
        return loaded(folder / "bert"), text_rows(folder)
    return loaded(folder / "vit"), open_image_rows(dataset_name=str(folder / "photos"))


def leave_at(part: int, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Let the writing of a part end like a kill: with half of it written, and no clean-up."""
    write = writing.write_table

    def write_half(table: object, path: Path, record: dict[str, object]) -> None:
        write(table, path, record)
        if path.name.startswith(f"part-{part:06d}"):
            torn = path.read_bytes()[:100]
            path.rename(path.with_name("elsewhere"))  # what the error would remove
            path.with_name("elsewhere").write_bytes(torn)
            raise KeyboardInterrupt

    monkeypatch.setattr(writing, "write_table", write_half)
    return monkeypatch


@pytest.mark.parametrize("suffix", [".parquet", ".npy"])
@pytest.mark.parametrize("kind", ["text", "image"])
def test_an_interrupted_file_is_the_undisturbed_one_to_the_last_bit(
    folder: Path, tmp_path: Path, kind: str, suffix: str
) -> None:
    embedder, source = opened(folder, kind)
    expected, target = tmp_path / f"whole{suffix}", tmp_path / f"target{suffix}"
    embed_to_file(embedder, source, expected, batch_size=2)
    for part in (1, 3):  # twice on the way
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            leave_at(part, patch)
            embed_to_file(embedder, source, target, batch_size=2)
        assert not target.exists()
    written = embed_to_file(embedder, source, target, batch_size=2)
    assert written.num_resumed == 3 * ROWS_OF_A_PART and written.counts.num_embedded == 23
    assert target.read_bytes() == expected.read_bytes()
    names = {path.name for path in tmp_path.iterdir()}
    beside = {"whole.rows.parquet", "target.rows.parquet"} if suffix == ".npy" else set()
    assert names == {expected.name, target.name} | beside


def test_a_part_that_is_not_whole_is_made_anew_and_what_follows_it_too(
    folder: Path, tmp_path: Path
) -> None:
    embedder, source = opened(folder, "text")
    embed_to_file(embedder, source, tmp_path / "whole.parquet")
    target = tmp_path / "target.parquet"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        leave_at(3, patch)
        embed_to_file(embedder, source, target)
    part = tmp_path / "target.parquet.parts/part-000001.parquet"
    part.write_bytes(part.read_bytes()[:200])
    assert embed_to_file(embedder, source, target).num_resumed == ROWS_OF_A_PART
    assert target.read_bytes() == (tmp_path / "whole.parquet").read_bytes()


@pytest.mark.slow
def test_a_process_that_is_killed_goes_on_by_the_same_command(folder: Path, tmp_path: Path) -> None:
    flags = ["--model", str(folder / "bert"), "--data_files", str(folder / "good.jsonl")]
    target = tmp_path / "target.parquet"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *flags, "--output", str(target)],
        env=environment(tmp_path),
        cwd=ROOT,
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    parts = tmp_path / "target.parquet.parts"
    assert (parts / "part-000001.parquet").is_file() and not target.exists()
    embedder, source = opened(folder, "text")
    written = embed_to_file(embedder, source, target)
    assert written.num_resumed == 2 * ROWS_OF_A_PART and not parts.exists()
    embed_to_file(embedder, source, tmp_path / "whole.parquet")
    assert target.read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def begun(folder: Path, target: Path) -> None:
    """Begin a file of texts."""
    embedder, source = opened(folder, "text")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        leave_at(2, patch)
        embed_to_file(embedder, source, target)


def test_parts_of_something_else_are_refused_and_replaced_when_asked(
    folder: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target.parquet"
    begun(folder, target)
    before = {
        path: path.read_bytes() for path in target.with_name("target.parquet.parts").iterdir()
    }
    bert, rule = str(folder / "bert"), EmbeddingRule(max_seq_length=12, pooling="cls")
    make_text_model(tmp_path / "other", num_hidden_layers=1)
    others = [
        (load_embedder(bert, rule), text_rows(folder), "`pooling` mean, `max_seq_length` 64"),
        (load_embedder(str(tmp_path / "other")), text_rows(folder), "with another model;"),
        (loaded(folder / "bert"), text_rows(folder, "bad.jsonl"), "with other data;"),
    ]
    for embedder, source, expected in others:
        with pytest.raises(InputError, match=expected):
            embed_to_file(embedder, source, target, on_bad="skip")
    for path, content in before.items():
        assert path.read_bytes() == content
    embedder, source, _ = others[0]
    assert embed_to_file(embedder, source, target, overwrite=True).num_resumed == 0
    embed_to_file(embedder, source, tmp_path / "whole.parquet")
    assert target.read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_a_file_that_was_only_touched_is_the_same(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.parquet"
    begun(folder, target)
    os.utime(folder / "good.jsonl")
    embedder, source = opened(folder, "text")
    assert embed_to_file(embedder, source, target).num_resumed == 2 * ROWS_OF_A_PART


def test_a_finished_file_is_not_replaced_unasked(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.npy"
    target.write_bytes(b"of somebody")
    embedder, source = opened(folder, "text")
    with pytest.raises(InputError, match=r"target\.npy exists; .*`overwrite`"):
        embed_to_file(embedder, source, target)
    assert target.read_bytes() == b"of somebody"
    embed_to_file(embedder, source, target, overwrite=True)
    assert np.load(target).shape == (23, 32)
    table = pq.read_table(tmp_path / "target.rows.parquet")
    assert table.column("file_row").to_pylist() == list(range(23))
    assert table.column_names == ["file", "file_row", "text", "label"]


def test_the_table_of_a_matrix_replaces_no_other_file_unasked(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "target.rows.parquet").write_bytes(b"of somebody")
    embedder, source = opened(folder, "text")
    with pytest.raises(InputError, match=r"target\.rows\.parquet exists"):
        embed_to_file(embedder, source, tmp_path / "target.npy")
    assert (tmp_path / "target.rows.parquet").read_bytes() == b"of somebody"


def test_a_bad_row_ends_it_or_is_left_out_and_named(folder: Path, tmp_path: Path) -> None:
    embedder, source = loaded(folder / "bert"), text_rows(folder, "bad.jsonl")
    target = tmp_path / "target.parquet"
    with pytest.raises(InputError, match=r"row 7 of .*bad\.jsonl holds None, .*`on_bad_text` skip"):
        embed_to_file(embedder, source, target)
    # The part before it is whole, and good for the command with that flag too.
    written = embed_to_file(embedder, source, target, on_bad="skip")
    assert written.num_resumed == ROWS_OF_A_PART
    counts = written.counts
    assert (counts.num_read, counts.num_embedded, counts.num_skipped) == (23, 22, 1)
    assert "row 7 of" in counts.skipped[0]
    places = [number for number in range(23) if number != 7]
    assert pq.read_table(target).column("file_row").to_pylist() == places


def test_an_error_in_the_first_part_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "first.jsonl"
    path.write_text('{"text": 3}\n{"text": "a"}\n')
    source = open_text_rows(TextSource(data_files=[str(path)]))
    embedder = loaded(folder / "bert")
    with pytest.raises(InputError, match="holds 3, which is not a text"):
        embed_to_file(embedder, source, tmp_path / "out/target.parquet")
    assert [item.name for item in (tmp_path / "out").iterdir()] == []


def test_rows_that_are_all_bad_are_refused_also_over_several_parts(
    folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "nulls.jsonl"
    path.write_text('{"text": null}\n' * 12)
    source = open_text_rows(TextSource(data_files=[str(path)]))
    embedder = loaded(folder / "bert")
    with pytest.raises(InputError, match=r"holds nothing to embed .*skipped: 12"):
        embed_to_file(embedder, source, tmp_path / "target.parquet", on_bad="skip")
    assert [item.name for item in tmp_path.iterdir()] == ["nulls.jsonl"]
    path.write_text('{"text": null}\n' * 7 + '{"text": "a list"}\n')  # a part of none, then one
    source = open_text_rows(TextSource(data_files=[str(path)]))
    embed_to_file(embedder, source, tmp_path / "target.npy", on_bad="skip")
    assert np.load(tmp_path / "target.npy").shape == (1, 32)


def test_numbers_too_large_for_float16_are_refused(folder: Path, tmp_path: Path) -> None:
    embedder, source = opened(folder, "text")

    class Large(type(embedder)):  # type: ignore[misc]
        def windows(self, rows: Iterator[object], **options: object) -> Iterator[Window]:
            for window in super().windows(rows, **options):
                window.embeddings = window.embeddings * 1e6
                yield window

    fields = {field.name: getattr(embedder, field.name) for field in dataclasses.fields(embedder)}
    large = Large(**fields)
    with pytest.raises(InputError, match="too large for float16; pass `dtype` float32"):
        embed_to_file(large, source, tmp_path / "target.parquet", dtype="float16")
    embed_to_file(embedder, source, tmp_path / "target.parquet", dtype="float16")
    embed_to_file(embedder, source, tmp_path / "exact.parquet")
    coarse, exact = (
        np.stack(pq.read_table(tmp_path / name).column("embedding").to_numpy())
        for name in ("target.parquet", "exact.parquet")
    )
    assert coarse.dtype == np.float16 and (coarse == exact.astype(np.float16)).all()


def test_two_processes_do_not_write_one_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "TIMEOUT_SECONDS", 0.1)
    target = tmp_path / "target.parquet"
    begun(folder, target)
    parts = tmp_path / "target.parquet.parts"
    embedder, source = opened(folder, "text")
    with FileLock(parts / run_folder.LOCK_FILE), pytest.raises(InputError, match="another process"):
        embed_to_file(embedder, source, target)
    assert len(list(parts.glob("part-*"))) == 2


def test_memory_holds_a_few_windows_of_rows(folder: Path, tmp_path: Path) -> None:
    """Rows are read as windows are embedded, not all before."""
    num_read, num_done, ahead = 0, 0, []
    few = list(text_rows(folder).read())

    def rows() -> Iterator[Row]:
        nonlocal num_read
        for row in itertools.islice(itertools.cycle(few), 100):
            num_read += 1
            yield row

    def advance(count: int) -> None:
        nonlocal num_done
        num_done += count
        ahead.append(num_read - num_done)

    embedder = loaded(folder / "bert")
    target = tmp_path / "target.parquet"
    embed_to_file(embedder, RowSource("rows", [], rows), target, advance=advance)
    assert num_done == 100 and max(ahead) <= 3 * ROWS_OF_A_PART
