"""Whatever flags are combined, a command line parses or is refused with one message."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_pretrain.__main__ import main
from bert_pretrain.commands.demo import DemoArguments
from bert_pretrain.commands.evaluate import SUITES
from bert_pretrain.commands.prepare import PrepareArguments
from bert_pretrain.commands.suites.context import FLAG_GROUPS
from bert_pretrain.commands.train_tokenizer import TokenizerArguments
from bert_pretrain.config.arguments import DataArguments, TextArguments
from bert_pretrain.config.embedding import (
    EmbedArguments,
    EmbedData,
    EmbedImages,
    EmbedText,
    NeighboursArguments,
)
from bert_pretrain.config.evaluating import LabelEfficiencyArguments
from bert_pretrain.config.finetuning import FinetuneArguments, RecipeArguments, TaskDataArguments
from bert_pretrain.config.pretraining import GROUPS
from bert_pretrain.config.worth_it import WorthItArguments, WorthItData

NUMBERS = [
    *("0", "1", "-1", "2", "7", "8", "31", "128", "0.5", "1.5", "-0.0", "15", "99", "1e3", "1e-9"),
    *("1e308", "1e999", "nan", "inf", "-inf", "1_000", "+5", " 5 ", "0x10", "٣", "½", "auto"),
    *("9" * 30, "9" * 5000, "8:0.3", "24:0.5,48:0.5", "0.3:0.15", ":", "8:", "1:nan", "1:0,"),
]
WORDS = [
    *("none", "all", "auto", "no", "yes", "digits", "docs", "latest", "tiny", "a/b", "a/b@c"),
    *(
        "a/b/c",
        "/",
        ".",
        "..",
        "~",
        "nowhere.txt",
        "*",
        "[",
        "\n",
        "a\tb",
        "é",
        "\ud800",
        "x" * 300,
    ),
    *("x" * 300, "{model}", "`seed`", "%s", "'", '"', "--", "-", "-x", "[MASK]"),
]
# What begins to do something, and is not to.
WORK = [
    "pretraining.claim_run_dir",
    "prepare.load_tokenizer",
    "train_tokenizer.train",
    "finetuning.find_task",
    "evaluate.run_label_efficiency",
    "embed.load_embedder",
    "neighbours.open_bank",
    "worth_it.read_model_config",
    "demo._show_text",
    "demo._show_images",
]
COMMANDS: dict[str, tuple[list[str], tuple[type, ...]]] = {
    "pretrain": (["pretrain"], GROUPS),
    "prepare": (
        ["prepare", "--output_dir", "out"],
        (PrepareArguments, DataArguments, TextArguments),
    ),
    "train-tokenizer": (["train-tokenizer"], (TokenizerArguments,)),
    "finetune": (
        ["finetune", "--model", "m", "--output_dir", "out"],
        (FinetuneArguments, TaskDataArguments, RecipeArguments),
    ),
    "evaluate": (["evaluate", "--model", "m", "--suite", "knn"], FLAG_GROUPS),
    "label_efficiency": (
        ["evaluate", "--suite", "label_efficiency", "--model", "m", "--output_dir", "out"],
        (LabelEfficiencyArguments, TaskDataArguments, RecipeArguments),
    ),
    "embed": (
        ["embed", "--model", "m", "--output", "o.npy"],
        (EmbedArguments, EmbedData, EmbedText, EmbedImages),
    ),
    "neighbours": (["neighbours", "--embeddings", "e.npy"], (NeighboursArguments,)),
    "worth-it": (
        ["worth-it", "--model", "m", "--train_file", "t.jsonl"],
        (WorthItArguments, WorthItData, RecipeArguments),
    ),
    "demo": (["demo"], (DemoArguments,)),
}


class ReachedError(Exception):
    """The flags were accepted."""


def reached(*_: Any, **__: Any) -> None:
    raise ReachedError


@pytest.fixture(scope="module", autouse=True)
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("idle"))
        for place in WORK:
            patch.setattr(f"bert_pretrain.commands.{place}", reached)
        patch.setattr("bert_pretrain.commands.evaluate._PRECONDITIONS", {})
        for suite in SUITES:
            patch.setitem(SUITES, suite, reached)
        yield


def choices(kind: Any) -> list[str]:
    """Return the literals of a type, however it is wrapped."""
    if get_origin(kind) is Literal:
        return [str(choice) for choice in get_args(kind)]
    return [choice for part in get_args(kind) for choice in choices(part)]


def flags_of(groups: tuple[type, ...]) -> list[tuple[str, Any]]:
    """Return name and type of all flags of some groups."""
    return [
        (entry.name, kinds[entry.name])
        for group in groups
        for kinds in (get_type_hints(group),)
        for entry in dataclasses.fields(group)
        if entry.name != "debug"  # which lets exceptions through
    ]


@st.composite
def command_lines(draw: st.DrawFn, groups: tuple[type, ...]) -> list[str]:
    """Draw flags of some groups, most with values of their kind."""
    flags = flags_of(groups)
    words: list[str] = []
    for name, kind in draw(st.lists(st.sampled_from(flags), max_size=6)):
        if draw(st.integers(0, 30)) == 0:
            words.append(draw(st.sampled_from([f"--{name}", f"--no_{name}", "stray"])))
            continue
        usual = choices(kind) or (WORDS if "str" in str(kind) else NUMBERS)
        value = draw(st.sampled_from(usual) | st.sampled_from(WORDS + NUMBERS))
        spelt = name if draw(st.booleans()) else name.replace("_", "-")
        words += [f"--{spelt}={value}"] if draw(st.booleans()) else [f"--{spelt}", value]
    return words


def check(command: str, words: list[str]) -> None:
    begin, _ = COMMANDS[command]
    before = set(Path().rglob("*"))  # of those that were accepted
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(io.StringIO()):
        try:
            main([*begin, *words])
        except ReachedError:
            return
        except SystemExit as stopped:
            assert stopped.code == 2, printed.getvalue()
    assert printed.getvalue().startswith("error: "), printed.getvalue()
    assert "; " in printed.getvalue() and "Traceback" not in printed.getvalue()
    assert set(Path().rglob("*")) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_no_flag_takes_a_word_that_is_none_of_its_own(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A flag of text takes any; of the others each names itself and the word it met."""
    begin, groups = COMMANDS[command]
    flags = [name for name, kind in flags_of(groups) if "str" not in str(kind)]
    assert flags
    before = set(Path().rglob("*"))
    for name in flags:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([*begin, f"--{name}", "no-such-word"])
        message = capsys.readouterr().err
        assert stopped.value.code == 2, message
        assert f"--{name} is 'no-such-word'" in message and message.count("\n") == 1, message
        assert re.search(r" but must be .+; (change|pass) --", message), message
    assert set(Path().rglob("*")) == before


@pytest.mark.parametrize("command", COMMANDS)
@settings(max_examples=60)
@given(data=st.data())
def test_flags_parse_or_are_refused(command: str, data: st.DataObject) -> None:
    check(command, data.draw(command_lines(COMMANDS[command][1])))


@pytest.mark.long
@pytest.mark.parametrize("command", COMMANDS)
@settings(max_examples=2000, derandomize=False)
@given(data=st.data())
def test_many_flags_parse_or_are_refused(command: str, data: st.DataObject) -> None:
    check(command, data.draw(command_lines(COMMANDS[command][1])))
