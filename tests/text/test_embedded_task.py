"""The labelled task made of the user's own Python."""

from __future__ import annotations

from pathlib import Path

import pytest

from bert_pretrain.text import embedded_task
from bert_pretrain.text.embedded_task import LIBRARIES, EmbeddedTask, read_embedded_task

NUM_MODULES = 40


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> EmbeddedTask:
    packages = Path("/lib/site-packages")

    def read_modules() -> list[tuple[Path, list[str]]]:
        found = [(Path("/lib/pydoc_data/topics.py"), ["A topic of the language."])]
        for index, name in enumerate((*LIBRARIES, "kornia")):
            folder = Path("/lib") if name == "python" else packages / name
            for number in range(NUM_MODULES):
                texts = [
                    f"Text {part} of m{index}x{number} for NumPy's np.array." for part in "abcde"
                ]
                found.append((folder / f"module_{number}.py", texts))
        return found

    monkeypatch.setattr(embedded_task, "read_modules", read_modules)
    monkeypatch.setattr(embedded_task, "package_folder", lambda name: packages / name)
    monkeypatch.setattr(embedded_task.sysconfig, "get_path", lambda name: "/lib")
    return read_embedded_task()


def test_no_module_of_the_test_rows_is_learnt_from_with_or_without_labels(
    task: EmbeddedTask,
) -> None:
    corpus = "\n".join(task.corpus)
    train, test = (
        {row["text"].split()[3] for row in task.rows[name]} for name in ("train", "test")
    )
    assert not train & test
    assert len(train) + len(test) == NUM_MODULES * len(LIBRARIES)
    assert 0.15 < len(test) / (len(train) + len(test)) < 0.35
    assert not any(f" {module} " in corpus for module in test)
    assert all(f" {module} " in corpus for module in train)
    assert f" m{len(LIBRARIES)}x3 " in corpus and "A topic of the language." in corpus


def test_a_sentence_does_not_name_its_library(task: EmbeddedTask) -> None:
    for rows in task.rows.values():
        assert {row["label"] for row in rows} == set(LIBRARIES)
        for row in rows:
            assert "umpy" not in row["text"].lower() and "np." not in row["text"]
            assert row["text"].endswith("for library's library.")


def test_long_modules_are_not_the_whole_task(task: EmbeddedTask) -> None:
    rows = [*task.rows["train"], *task.rows["test"]]
    assert len(rows) == NUM_MODULES * len(LIBRARIES) * 4  # of five paragraphs
