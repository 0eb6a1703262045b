"""The benchmark of reading images: every way that it compares runs, and its figures are written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from runs import ROOT, environment

sys.path.insert(0, str(ROOT / "benchmarks"))

import image_reading
from results import replace_marked

SMALL = {
    "image_size": 16,
    "width": 48,
    "height": 36,
    "num_images": 24,
    "batch_size": 4,
    "num_workers": 0,
    "rounds": 1,
    "batches": 1,
}


def test_every_way_of_reading_is_timed_and_written_with_its_settings(tmp_path: Path) -> None:
    script = ROOT / "benchmarks/image_reading.py"
    flags = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(
        [sys.executable, str(script), *flags, "--json", str(tmp_path / "figures.json")],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "figures.json").read_text())
    assert SMALL.items() <= written["figures"].items()
    for way in ("plain", "stream", "cache", "cache_and_crops"):
        assert written["runs"][way] == [written["figures"][f"{way}_images_per_second"]]
        assert written["runs"][way][0] > 0
        assert f"| {way.replace('_and_', ' + ')} | " in done.stdout


def test_the_document_holds_the_table_of_the_committed_results() -> None:
    text = (ROOT / "docs/images.md").read_text()
    content = json.loads((ROOT / "benchmarks/results/image_reading.json").read_text())
    assert replace_marked(text, "image reading", image_reading.table(content)) == text
