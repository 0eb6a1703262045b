"""Prose out of docstrings, and the corpus made of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bert_pretrain.text import docstrings, embedded

NUMPYDOC = """Compute the weighted mean of the values along an axis.

The mean is the sum of the products of ``values`` and :func:`~numpy.weights`, divided by
the sum of the *weights* [1]_.

Parameters
----------
values : array_like
    Values whose weighted mean is to be computed by this function.
axis : int, optional
    Axis to use.

Returns
-------
float
    The weighted mean of all the values that were given.

Notes
-----
For a single value the result is that value itself, whatever its weight is.

.. math:: \\sum_i w_i x_i

.. note::
    The weights must not sum to zero, or the result is not a number.

Examples
--------
The first example shows how the function is to be called by a user.

>>> mean([1, 2])
1.5

References
----------
.. [1] A. Author, The book of the means of the weighted values. It is a book.
"""

GOOGLE = """Open the file at the given path and return a handle to its content.

The handle should be used like this, since it has to be closed by the caller::

    with open_it(path) as the_handle_of_the_file:
        This is not a sentence of the documentation but it is code.

Args:
    path (str): The path of the file that is to be opened by the function
        for reading only.
    mode: The mode in which the file at the path will be opened.

    - First, this is a bullet that has enough words to be kept.

Example:
    Here the words of the example are those that nobody wants to read.

A final paragraph that follows the example is part of the text again.
"""


def test_numpydoc_keeps_sentences_and_drops_headings_math_examples_and_references() -> None:
    assert docstrings.prose_paragraphs(NUMPYDOC) == [
        "Compute the weighted mean of the values along an axis.",
        "The mean is the sum of the products of values and weights, divided by the sum of the "
        "weights.",
        "Values whose weighted mean is to be computed by this function.",
        "The weighted mean of all the values that were given.",
        "For a single value the result is that value itself, whatever its weight is.",
        "The weights must not sum to zero, or the result is not a number.",
    ]


def test_google_style_keeps_descriptions_without_names_and_drops_code() -> None:
    assert docstrings.prose_paragraphs(GOOGLE) == [
        "Open the file at the given path and return a handle to its content.",
        "The path of the file that is to be opened by the function for reading only.",
        "The mode in which the file at the path will be opened.",
        "First, this is a bullet that has enough words to be kept.",
        "A final paragraph that follows the example is part of the text again.",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "Too short to keep.",
        "a sentence that begins in the middle of something is not for us.",
        "The end of this sentence is missing because it was cut off at the",
        "Set self.a to x_1 and then call foo(x) with bar=2, baz=3 or qux.",
        "See https://example.org for all of the details that are not given here.",
        "Alpha Beta Gamma Delta Epsilon Zeta Eta Theta Iota Kappa Lambda Mu.",
    ],
)
def test_what_is_no_prose_is_dropped(text: str) -> None:
    assert docstrings.prose_paragraphs(text) == []


def test_modules_are_read_and_never_imported(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(
        '"""The text of the module is the first thing that is found in it."""\n'
        "raise SystemExit('imported')\n"
        'add_newdoc("name", "The text of a compiled function is given to a call like this.")\n'
        'print("The text that is printed by a module is not a part of its docs.")\n'
        'class A:\n    """The text of the class is what comes after that of the module."""\n'
        "    def b(self):\n"
        '        """The text of the method is the last one that is to be found."""\n'
    )
    assert docstrings.module_paragraphs(module) == [
        "The text of the module is the first thing that is found in it.",
        "The text of a compiled function is given to a call like this.",
        "The text of the class is what comes after that of the module.",
        "The text of the method is the last one that is to be found.",
    ]


def test_modules_that_cannot_be_read_or_parsed_have_no_text(tmp_path: Path) -> None:
    for name, content in (("a.py", b'"""Doc."""\nprint "2"'), ("b.py", b"\xff\xfe"), ("c.py", b"")):
        (tmp_path / name).write_bytes(content)
        assert docstrings.module_paragraphs(tmp_path / name) == []
    (tmp_path / ".#lock.py").symlink_to("user@host.1234")  # of an editor
    assert docstrings.module_paragraphs(tmp_path / ".#lock.py") == []


def _write_modules(folder: Path) -> list[Path]:
    common = "This is a paragraph that many of the modules have in common. It has two sentences."
    modules = []
    for number in range(7):
        name = "x" * (number + 1)
        own = f"It is only the module of the {name} that says this. Nobody else would say so."
        path = folder / f"module_{number}.py"
        path.write_text(f'"""{own}\n\n{common}\n"""\n')
        modules.append(path)
    lonely = folder / "module_9.py"
    lonely.write_text('"""This is the only sentence of the whole module that we look at."""\n')
    return [*modules, lonely]


def test_a_paragraph_is_kept_once_and_one_sentence_is_no_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = _write_modules(tmp_path)
    monkeypatch.setattr(embedded, "_modules", lambda: modules)
    monkeypatch.setattr(embedded.docstrings, "topic_paragraphs", lambda path: [])
    documents = embedded._extract()
    assert sum("in common" in document for document in documents) == 1
    assert "\n" in documents[0]
    assert len(documents) == 7
    assert not any("the only sentence" in document for document in documents)


def test_the_order_does_not_depend_on_the_number_of_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = _write_modules(tmp_path)
    expected = [docstrings.module_paragraphs(path) for path in modules]
    for num_cores in (1, 3, 16):
        monkeypatch.setattr(embedded.os, "cpu_count", lambda value=num_cores: value)
        assert embedded._paragraphs_of(modules) == expected


def test_the_cache_is_used_and_nothing_partial_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded.constants, "HF_HOME", str(tmp_path))
    monkeypatch.setattr(embedded, "_extract", lambda: ["One document. It has two sentences."])
    first = embedded.embedded_documents()
    monkeypatch.setattr(embedded, "_extract", lambda: pytest.fail("extracted again"))
    assert embedded.embedded_documents() == first
    (path,) = (tmp_path / "bert_pretrain").glob("docs-*.json")
    for damaged in ("", path.read_text().replace("One", "Own")):
        path.write_text(damaged)
        monkeypatch.setattr(embedded, "_extract", lambda: first)
        assert embedded.embedded_documents() == first
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_key_follows_versions_and_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [embedded.embedded_key()]
    with monkeypatch.context() as patch:
        patch.setattr(embedded, "_version", lambda distribution: "0.0")
        keys.append(embedded.embedded_key())
    with monkeypatch.context() as patch:
        patch.setattr(embedded, "PACKAGES", ["no_such_package"])
        keys.append(embedded.embedded_key())
    monkeypatch.setattr(embedded, "EXTRACTOR_VERSION", -1)
    keys.append(embedded.embedded_key())
    assert len(set(keys)) == 4


def test_missing_packages_leave_the_standard_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "PACKAGES", ["no_such_package"])
    modules = embedded._modules()
    assert len(modules) > 100
    assert not any("site-packages" in path.parts for path in modules)


def test_a_program_without_main_guard_runs_once(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    root = Path(embedded.__file__).parents[2]
    program.write_text(
        f"import sys; sys.path.insert(0, {str(root)!r})\n"
        "from pathlib import Path\n"
        "from bert_pretrain.text import embedded\n"
        "module = Path(embedded.__file__)\n"
        "paragraphs = embedded._paragraphs_of([module, module])\n"
        "print(len(paragraphs))\n"
    )
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "2\n"
    assert done.stderr == ""


def test_the_language_reference_gives_documents() -> None:
    import pydoc_data.topics

    topics = docstrings.topic_paragraphs(Path(pydoc_data.topics.__file__))
    assert sum(map(bool, topics)) >= 50
    words = [len(paragraph.split()) for paragraphs in topics for paragraph in paragraphs]
    assert min(words) >= docstrings.MIN_WORDS
    assert sum(words) > 20_000


@pytest.mark.slow
def test_the_embedded_corpus_is_large_enough_to_learn_from() -> None:
    documents = embedded._extract()
    assert len(documents) >= 1_500
    assert sum(len(document.split()) for document in documents) >= 700_000
    assert json.dumps(documents) == json.dumps(embedded._extract())
