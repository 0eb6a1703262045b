"""SECURITY.md fits a screen, and each of its promises names tests that there are."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]


@cache
def claims_of(name: str) -> set[str]:
    """Return the names of the tests in a file."""
    tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    return {name for name in names if name.startswith("test_")}


def test_each_promise_names_tests_that_there_are() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    lines = text.partition("<!-- faults -->")[0].splitlines()
    assert len(lines) < 40
    promises = [line.strip("|").split("|") for line in lines if line.startswith("| ")][1:]
    assert len(promises) > 10
    for promise, tests in promises:
        assert promise.strip().endswith("."), promise
        named = re.findall(r"`(tests/[\w/]+\.py)((?:::\w+)+)`", tests)
        assert named, promise
        # Nothing else stands there: a whole file protects no promise of its own.
        assert not re.sub(r"`tests/[\w/]+\.py(?:::\w+)+`|[\s,]", "", tests), tests
        for path, claims in named:
            missing = set(claims.split("::")[1:]) - claims_of(path)
            assert not missing, (path, missing)
