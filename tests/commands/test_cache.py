"""`bert-pretrain cache`: copies of text and of images are listed, and removed unless in use."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import environment, write_corpus

from bert_pretrain.__main__ import main
from bert_pretrain.data import copies
from bert_pretrain.images.corpus import open_images
from bert_pretrain.text.documents import TextSource
from bert_pretrain.text.opening import open_corpus
from bert_pretrain.text.prepared import PreparedCorpus
from bert_pretrain.text.tokenizers import load_tokenizer

DAY = 24 * 60 * 60
HOLDER = """
import sys
from pathlib import Path
from bert_pretrain.data.copies import hold
hold(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module in ("images.corpus", "text.preparation"):
        monkeypatch.setattr(f"bert_pretrain.{module}.HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(copies, "_HELD", {})  # as in a process of its own
    return tmp_path / "hf/bert_pretrain/images"


def decode(folder: Path, *, seed: int = 0) -> Path:
    """Open a folder of images, and return its copy as if the process had ended since."""
    before = set(folder.parent.rglob("pixels.npy"))
    folder.mkdir()
    for number in range(5):
        pixels = np.random.default_rng([seed, number]).integers(0, 256, (7, 9, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    open_images(dataset_name=str(folder), validation_share=0.4, seed=0, show_progress=False)
    for file in copies._HELD.values():
        file.close()
    copies._HELD.clear()
    (made,) = set(folder.parent.rglob("pixels.npy")) - before
    return made.parent


def age(copy: Path, days: float) -> None:
    then = time.time() - days * DAY
    os.utime(f"{copy}.use", (then, then))


def test_the_list_says_what_a_copy_is_how_large_and_when_it_was_used(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = decode(tmp_path / "photographs")
    age(copy, 3)
    for _ in range(2):  # to list is not to use
        assert main(["cache"]) == 0
        _, line, total = capsys.readouterr().out.splitlines()
        size = sum(path.stat().st_size for path in copy.iterdir())
        assert line.split()[:2] == [f"{size / 1e6:.1f}", "MB"]
        assert time.strftime("%Y-%m-%d", time.localtime(time.time() - 3 * DAY)) in line
        assert line.endswith(f"{copy.name}  5 images of 9 x 7 from {tmp_path / 'photographs'}")
        assert total.endswith(f"MB in {cache}") and copy.is_dir()


def test_only_what_was_unused_for_long_enough_is_removed_and_made_again_when_needed(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, young = decode(tmp_path / "old"), decode(tmp_path / "young", seed=1)
    age(old, 31)
    age(young, 29)
    assert main(["cache", "--clean", "30"]) == 0
    _, first, second, _ = capsys.readouterr().out.splitlines()
    assert "removed" in first and old.name in first
    assert "removed" not in second and young.name in second
    assert not old.exists() and young.exists()
    corpus = open_images(
        dataset_name=str(tmp_path / "old"), validation_share=0.4, seed=0, show_progress=False
    )
    assert len(corpus.pixels) == 5 and old.exists()


def test_a_copy_that_another_process_uses_stays(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    used, free = decode(tmp_path / "used"), decode(tmp_path / "free", seed=1)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(used)],
        env=environment(tmp_path),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        assert main(["cache", "--clean", "all"]) == 0
        printed = capsys.readouterr().out
        assert used.exists() and not free.exists()
        assert [line.split()[4:6] for line in printed.splitlines() if used.name in line] == [
            ["in", "use"]
        ]
    assert main(["cache", "--clean", "all"]) == 0
    assert not used.exists()


def test_what_an_ended_process_left_half_done_is_removed_too(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left = decode(tmp_path / "photographs")
    left.rename(f"{left}.bert-pretrain.tmp")
    assert main(["cache", "--clean", "0"]) == 0
    assert "removed" in capsys.readouterr().out
    assert not [path for path in cache.iterdir() if path.is_dir()]


@pytest.mark.parametrize("value", ["everything", "-1", "nan", "inf"])
def test_what_is_to_be_removed_is_all_or_an_age(
    cache: Path, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["cache", f"--clean={value}"])
    assert stopped.value.code == 2
    assert f"--clean is '{value}' but must be all, or a number of days" in capsys.readouterr().err


def test_without_any_copy_nothing_is_listed(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache"]) == 0
    prepared = cache.with_name("prepared")
    assert capsys.readouterr().out == f"0.0 MB in {prepared}\n0.0 MB in {cache}\n"


def test_prepared_text_is_listed_and_removed_unless_in_use(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def prepare() -> PreparedCorpus:
        return open_corpus(
            TextSource(data_files=[str(write_corpus(tmp_path / "own.jsonl"))]),
            load_tokenizer(None),
            seed=0,
            download=lambda _: None,
            show_progress=False,
        )

    corpus = prepare()
    assert main(["cache", "--clean", "all"]) == 0
    line, *_ = capsys.readouterr().out.splitlines()
    tokens = corpus.manifest["counts"]["tokens"]
    assert line.endswith(f"in use   {corpus.folder.name}  {tokens:,} tokens of own.jsonl")
    copies._HELD.popitem()[1].close()  # as if the process had ended
    assert main(["cache", "--clean", "all"]) == 0
    assert "removed" in capsys.readouterr().out and not corpus.folder.exists()
    assert prepare().folder == corpus.folder and corpus.folder.exists()
