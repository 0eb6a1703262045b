"""The report of a run, finished or not: what stands in it, and when it is refused."""

from __future__ import annotations

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bert_pretrain.__main__ import main
from bert_pretrain.commands.report import write_report
from bert_pretrain.data.run_folder import held

VALIDATION = {
    "split": "validation",
    "epoch": 0.0,
    "loss": 7.25,
    "mlm_loss": 6.5,
    "unigram_entropy": 6.25,
}
MASK = {
    "sentence": "a <b> [MASK].",
    "position": 3,
    "original": "dog",
    "probability": 0.125,
    "entropy": 3.5,
}


class Page(HTMLParser):
    """Collects the texts and addresses of a page, and checks that tags are closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href")]
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and "style" not in self.open:
            self.texts.append(data.strip())


def write_run(
    folder: Path, *, steps: tuple[int, ...] = (0, 100), started: str = "noon", **config: Any
) -> Path:
    folder.mkdir(exist_ok=True)
    record = {
        "config": {"objective": "mlm_nsp", "max_steps": 1800, "tokenizer_name": None} | config
    }
    record["started"] = started
    record |= {
        "command": ["run_pretraining.py", "--seed", "1"],
        "versions": {"torch": "9.9"},
        "hardware": {"cores": 2},
    }
    (folder / "run.json").write_text(json.dumps(record))
    rows = [VALIDATION | {"step": step, "mlm_accuracy": 0.1 + step / 1000} for step in steps]
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows) + '{"split": '
    )
    return folder


def write_final(run: Path, *, step: int) -> None:
    """End a run."""
    (run / "final").mkdir()
    record = json.loads((run / "run.json").read_text()) | {"step": step}
    (run / "final/run.json").write_text(json.dumps(record))


def test_a_finished_run_that_is_continued_is_not_finished_until_it_has_ended_again(
    tmp_path: Path,
) -> None:
    def status() -> str:
        (line,) = [text for text in Page(write_report(run).read_text()).texts if "inished" in text]
        return line

    run = write_run(tmp_path / "run", max_steps=100)
    write_final(run, step=100)
    assert status() == "Finished after 100 updates."
    write_run(run, started="later", max_steps=200)  # nothing is measured yet
    kept = " final/ holds the model after 100 updates, from before the run was continued."
    assert status() == "Not finished: 100 of 200 updates are recorded." + kept
    write_run(run, started="later", max_steps=200, steps=(0, 100, 150))
    with held(run):
        assert (
            status()
            == "Not finished: 150 of 200 updates are recorded. A process is at work on it." + kept
        )
    assert status() == "Not finished: 150 of 200 updates are recorded." + kept
    shutil.rmtree(run / "final")
    write_final(run, step=150)
    assert status() == "Finished after 150 updates."


def test_a_text_run_in_progress_is_one_page_with_everything_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run")
    lines = [
        json.dumps({"step": step} | MASK | {"candidates": [["word & co", 0.2]]})
        for step in (0, 100)
    ]
    (run / "fill_mask.jsonl").write_text("\n".join(lines) + "\n")
    assert main(["report", str(run)]) == 0
    assert str(run / "report.html") in capsys.readouterr().out
    page = Page((run / "report.html").read_text())
    assert "Not finished: 100 of 1,800 updates are recorded." in page.texts
    assert "a <b> [MASK]. (token 3)" in page.texts and page.texts.count("word & co 0.200") == 2
    for text in (
        "7.25",
        "0.2",
        "6.25",
        "p(dog)",
        "0.125",
        "3.5",
        "run_pretraining.py --seed 1",
        "9.9",
        "objective",
    ):
        assert text in page.texts
    assert "Pictures" not in page.texts and "None" not in page.texts
    (address,) = page.addresses
    picture = base64.b64decode(address.removeprefix("data:image/png;base64,"))
    assert picture == (run / "curves.png").read_bytes()
    assert not list(run.glob("*.tmp"))


def test_an_image_run_shows_the_first_and_the_last_picture_of_each_kind(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", objective="contrastive")
    write_final(run, step=100)
    drawn = {}
    for number, (step, kind) in enumerate(
        [(999999, "views"), (1000000, "views"), (0, "views"), (5, "embeddings")]
    ):
        path = run / "pictures" / f"step-{step:06d}" / f"{kind}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), number, dtype=np.uint8)).save(path)
        drawn[step, kind] = path.read_bytes()
    html = write_report(run).read_text()
    page = Page(html)
    assert "Finished after 100 updates." in page.texts
    headings = ["Views that are compared", "before any update", "after 1,000,000 updates"]
    headings += ["Map of the embeddings", "after 5 updates"]
    start = page.texts.index("Pictures") + 1
    assert page.texts[start : start + 5] == headings
    shown = [base64.b64decode(address.split(",")[1]) for address in page.addresses[1:]]
    assert shown == [drawn[0, "views"], drawn[1000000, "views"], drawn[5, "embeddings"]]
    assert not re.search(r"(src|href)=\"(?!data:)", html)


def test_what_a_run_says_is_text_and_no_html(tmp_path: Path) -> None:
    image = "<img src=x onerror=alert(1)>"
    run = write_run(tmp_path / "run<b>", text_column=image)
    with (run / "metrics.jsonl").open("w") as file:
        file.write(json.dumps(VALIDATION | {"step": 0, f"{image}_loss": 1.0}) + "\n")
        file.write(json.dumps({"split": "warning", "step": 0, "message": image}) + "\n")
    (run / "fill_mask.jsonl").write_text(
        json.dumps({"step": 0} | MASK | {"sentence": image, "candidates": [[image, 0.2]]}) + "\n"
    )
    html = write_report(run).read_text()
    assert "<img src=x" not in html and "run<b>" not in html
    assert html.count("&lt;img src=x") >= 4
