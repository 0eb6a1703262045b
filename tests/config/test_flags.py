"""Ranges of flags: stated in the help, checked for every command, and the same as elsewhere."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar, Literal, get_args, get_origin, get_type_hints

import pytest
from transformers import HfArgumentParser

import bert_pretrain
from bert_pretrain.__main__ import COMMANDS, main
from bert_pretrain.config.arguments import ModelArguments, OptimizationArguments
from bert_pretrain.config.continuing import DEFINING, FREE, NOTED, flags_to_compare
from bert_pretrain.config.evaluating import LabelEfficiencyArguments, check_label_efficiency
from bert_pretrain.config.flags import (
    AUTO,
    LevelRange,
    Range,
    above,
    at_least,
    check_json_target,
    check_ranges,
    check_seeds,
    flag,
    parse_flags,
    pick,
)
from bert_pretrain.config.pretraining import GROUPS, parse_config
from bert_pretrain.config.recipes import RECIPES
from bert_pretrain.config.schedules import Lengths, Rates
from bert_pretrain.errors import InputError
from bert_pretrain.models.image_encoder_config import IMAGE_SIZES
from bert_pretrain.models.text_encoder_config import ARCHITECTURES, BERT_SIZES


@dataclass
class Group:
    share: float = flag(0.5, "A share.", allowed=Range(0, 1, low_included=False))
    count: int | None = flag(None, "A count.", allowed=at_least(1))
    rate: float = flag(1.0, "A rate.", allowed=above(0))
    free: float = flag(0.0, "Any number.")


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"share": 0.0}, "`share` is 0.0 but must be in (0, 1]; change `share`"),
        ({"share": 15.0}, "in (0, 1]; for 15 % pass `share` 0.15"),
        ({"share": 15.0}, "in (0, 1]; for 15 % pass `share` 0.15"),
        ({"share": 1.5}, "in (0, 1]; change `share`"),
        ({"share": 100.0}, "in (0, 1]; change `share`"),
        ({"share": -3.0}, "in (0, 1]; change `share`"),
        ({"count": 0}, "`count` is 0 but must be at least 1, at most 1,000,000,000"),
        ({"count": 10**9 + 1}, "but must be at least 1, at most 1,000,000,000"),
        ({"rate": 0.0}, "`rate` is 0.0 but must be greater than 0, at most 1,000,000,000"),
        ({"rate": float("inf")}, "`rate` is inf but must be a finite number"),
        ({"free": float("nan")}, "`free` is nan but must be a finite number"),
    ],
)
def test_a_value_out_of_its_range_is_refused(values: dict[str, float], problem: str) -> None:
    with pytest.raises(InputError) as refused:
        check_ranges(Group(), Group(**values))
    assert problem in str(refused.value)
    assert refused.value.parameter in values and refused.value.allowed


def test_the_ends_of_a_range_are_allowed_as_stated() -> None:
    check_ranges(Group(share=1.0, count=1, rate=1e-9, free=-5.0))


def test_the_help_states_each_range_and_parsing_checks_it() -> None:
    parser = HfArgumentParser(Group)
    text = " ".join(parser.format_help().split())
    assert "A share. Must be in (0, 1]." in text and "A count. Must be at least 1, at most" in text
    assert parse_flags(parser, ["--share", "0.25", "--count=3"]) == (Group(0.25, 3),)
    with pytest.raises(InputError, match="`count`"):
        parse_flags(parser, ["--count", "-1"])


def groups_of_all_commands() -> list[type]:
    """Return every dataclass of flags, wherever in the package it is declared."""
    package = Path(bert_pretrain.__file__).parent
    modules = [
        importlib.import_module(f"bert_pretrain.{room}.{path.stem}")
        for room in ("config", "commands")
        for path in sorted((package / room).glob("[a-z]*.py"))
    ]
    found = {
        value
        for module in modules
        for value in vars(module).values()
        if dataclasses.is_dataclass(value) and hasattr(value, "_argument_group_name")
    }
    return sorted(found, key=lambda group: group.__name__)


def numbers_of(group: type) -> dict[str, type]:
    """Return the fields of a dataclass that hold a number or several, and the type of one."""
    found: dict[str, type] = {}
    for name, hint in get_type_hints(group).items():
        parts = get_args(hint) or (hint,)
        types = [part for part in parts if isinstance(part, type) and get_origin(part) is None]
        kinds = [part for part in types if issubclass(part, int | float) and part is not bool]
        if kinds and get_origin(hint) not in (Literal, ClassVar):
            found[name] = kinds[0]
    return found


NUMBERS = [
    (group, name, kind)
    for group in groups_of_all_commands()
    for name, kind in numbers_of(group).items()
]
# Numbers that no range bounds, with the reason; lists of seeds have a check of their own.
UNBOUNDED: dict[str, str] = {}


def test_the_flags_of_all_commands_are_looked_at() -> None:
    names = {name for _, name, _ in NUMBERS}
    assert {"seed", "vocab_size", "k", "min_steps", "max_pairs", "mlm_probability"} <= names
    assert {"max_seq_length", "per_device_train_batch_size", "seeds", "image_size"} <= names
    assert len(NUMBERS) > 60


@pytest.mark.parametrize(
    ("group", "name", "kind"),
    NUMBERS,
    ids=[f"{group.__name__}.{name}" for group, name, _ in NUMBERS],
)
def test_no_number_is_without_bounds(group: type, name: str, kind: type) -> None:
    """Text and options as the command line gives them: each of these is nobody's intention."""
    defaults = {
        entry.name: "x"
        for entry in dataclasses.fields(group)
        if entry.default is entry.default_factory is dataclasses.MISSING
    }
    wrong = [10**12, -7] if issubclass(kind, int) else [1e12, 1e300, -0.1, math.nan, math.inf]
    for value in wrong:
        with pytest.raises(InputError) as refused:
            if name == "seeds":
                check_seeds([1, value])
            else:
                made = kind(str(value)) if kind in (Lengths, Rates) else kind(value)
                check_ranges(group(**defaults | {name: made}))
        assert name in UNBOUNDED or refused.value.parameter == name
        assert f"`{name}`" in str(refused.value) and str(value)[:6] in str(refused.value)
        assert refused.value.allowed


@pytest.mark.parametrize("objective", RECIPES)
def test_recipes_lie_within_the_ranges(objective: str) -> None:
    for recipe in RECIPES[objective]:
        parse_config(["--objective", objective, "--recipe", recipe])


@pytest.mark.parametrize(
    "word", ["0", "1000000000", "9" * 5000, "-1", "1.5", "\u0663", "all of it"]
)
def test_numbers_of_labels_are_bounded_too(word: str) -> None:
    curve = LabelEfficiencyArguments(model="m", output_dir="o", num_labels=["4", word])
    with pytest.raises(InputError, match="`num_labels` is"):
        check_label_efficiency(curve, arms=["fine_tuned"], adapt_minutes=0)


def test_no_help_repeats_a_range_by_hand() -> None:
    for group in GROUPS:
        for entry in dataclasses.fields(group):
            text = entry.metadata["help"].split(" Must be ")[0]
            assert not any(words in text for words in ("in [", "in (", "at least", "> 0"))


def test_the_help_names_the_sizes_that_there_are() -> None:
    (entry,) = (e for e in dataclasses.fields(ModelArguments) if e.name == "config_name")
    text = entry.metadata["help"]
    assert f"({', '.join(BERT_SIZES)})" in text and f"({', '.join(IMAGE_SIZES)})" in text
    others = ", ".join(f"{name}-" for name in sorted(ARCHITECTURES) if name != "bert")
    assert f"({others}, as in" in text


def test_the_help_of_pretraining_can_be_shown() -> None:
    with contextlib.redirect_stdout(io.StringIO()) as shown, pytest.raises(SystemExit):
        parse_config(["--help"])
    assert "4294967295" in shown.getvalue()


@pytest.mark.parametrize("command", [*COMMANDS, "hub push", "hub push_dataset"])
def test_the_help_of_every_command_can_be_shown(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command.split(), "--help"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")


def test_a_flag_may_be_spelt_with_hyphens() -> None:
    config = parse_config(["--max-steps", "7"])
    assert config.optimization.max_steps == 7 and config.optimization.max_hours == 0
    with pytest.raises(InputError, match="`noise_std` means nothing"):
        parse_config(["--noise-std=1"])


def test_a_dataclass_is_filled_with_the_flags_of_its_names() -> None:
    @dataclass
    class Target:
        share: float
        rate: float
        size: int = 3

    assert pick(Target, Group(rate=2.0), SimpleNamespace(count=1)) == Target(0.5, 2.0)
    assert pick(Target, Group(), size=4, rate=0.1) == Target(0.5, 0.1, 4)
    with pytest.raises(TypeError):
        pick(Target, SimpleNamespace(share=1.0))


def test_every_flag_has_a_role_when_a_run_is_continued() -> None:
    names = [entry.name for group in GROUPS for entry in dataclasses.fields(group)]
    assert sorted(names) == sorted([*DEFINING, *NOTED, *FREE])


@pytest.mark.parametrize("objective", ["mlm_nsp", "autoencoder", "contrastive"])
def test_flags_to_compare_are_those_of_the_objective(objective: str) -> None:
    flags = parse_config(["--objective", objective]).to_dict()
    defining, noted = flags_to_compare(flags)
    assert defining["objective"] == objective and noted["learning_rate"] == flags["learning_rate"]
    assert not defining.keys() & noted.keys()
    assert defining.keys() <= DEFINING and noted.keys() <= NOTED


def optimization(*arguments: str) -> OptimizationArguments:
    return parse_config(arguments).optimization


def test_the_rows_of_an_update_are_the_recipes_unless_what_is_computed_at_once_is_given() -> None:
    assert optimization().global_batch_size == 32
    assert optimization("--recipe", "devlin2019").global_batch_size == 256
    assert optimization("--objective", "contrastive").global_batch_size == 256
    for spelling in ("--per_device_train_batch_size", "--per-device-train-batch-size"):
        assert optimization(spelling, "8").global_batch_size == 0  # a product, as in transformers
        assert optimization(f"{spelling}=8").global_batch_size == 0
        assert optimization(spelling, "auto").global_batch_size == 32
        assert optimization(spelling, "8", "--global_batch_size", "64").global_batch_size == 64
    assert optimization("--gradient_accumulation_steps", "2").global_batch_size == 0


def test_auto_is_a_word_not_a_number() -> None:
    spelling = "--per_device_train_batch_size"
    assert optimization(spelling, "auto").per_device_train_batch_size == AUTO
    assert parse_config([]).data.dataloader_num_workers == AUTO
    with pytest.raises(InputError, match=r"must be in \[1, 65536\] or auto"):
        optimization(spelling, "0")
    for wrong in ("-1", "some", "1.5"):
        with pytest.raises(InputError, match=f"is '{wrong}' but must be a number or auto"):
            optimization(spelling, wrong)


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ("--keep_every 100", r"`keep_every` is 100 but must be a multiple of `save_steps` \(450\)"),
        ("--keep_every 100 --save_steps 0", r"a multiple of `save_steps` \(0\)"),
        ("--keep_every 450 --save_total_limit 0", "`keep_every` means nothing with"),
        ("--keep_every -450", "`keep_every` is -450 but must be at least 0"),
        ("--on_spike rewind --save_steps 0", "`on_spike` is rewind, which goes back to a"),
    ],
)
def test_checkpoints_that_are_not_written_cannot_be_kept_or_gone_back_to(
    flags: str, problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        parse_config(flags.split())
    assert parse_config(["--keep_every", "900"]).run.keep_every == 900
    assert optimization().on_spike == "warn"


@pytest.mark.parametrize("text", ["0:4095", "-1024:3071", "0:0.5"])
def test_a_range_of_levels_is_two_numbers_and_is_recorded_as_it_was_given(text: str) -> None:
    config = parse_config(["--objective", "autoencoder", f"--pixel_range={text}"])
    low, high = config.images.pixel_range.ends or (None, None)
    assert (low, high) == tuple(map(float, text.split(":")))
    assert config.to_dict()["pixel_range"] == text
    assert LevelRange("auto").ends is None


@pytest.mark.parametrize("text", ["4095", "0:", "9:9", "5:1", "a:b", "0:1:2", "0:nan", "0:inf"])
def test_other_ranges_of_levels_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"`pixel_range` is .* but must be"):
        parse_config(["--objective", "autoencoder", f"--pixel_range={text}"])


@pytest.mark.parametrize("content", ["", '{"figures": {}}', '{"checks": [], "is_whole": true}'])
def test_a_file_of_figures_is_replaced(tmp_path: Path, content: str) -> None:
    (tmp_path / "found.json").write_text(content)
    check_json_target(str(tmp_path / "found.json"))
    check_json_target(str(tmp_path / "new.json"))


@pytest.mark.parametrize("content", [b'{"text": "a"}\n{"text": "b"}\n', b"PAR1\xff", b"[1]", b"{}"])
def test_a_file_of_anything_else_is_not_replaced_by_figures(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "own"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"`json` is .*own', a file that no command"):
        check_json_target(str(path))
