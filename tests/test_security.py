"""SECURITY.md fits a screen, and each of its promises names a test that there is."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_each_promise_names_tests_that_there_are() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    lines = text.partition("<!-- faults -->")[0].splitlines()
    assert len(lines) < 40
    promises = [line.strip("|").split("|") for line in lines if line.startswith("| ")][1:]
    assert len(promises) > 10
    for promise, tests in promises:
        assert promise.strip().endswith("."), promise
        named = re.findall(r"`(tests/[\w/]+(?:\.py|/))`", tests)
        assert named, promise
        for path in (ROOT / name for name in named):
            files = [path] if path.is_file() else list(path.glob("test_*.py"))
            assert any("def test_" in file.read_text(encoding="utf-8") for file in files), path
