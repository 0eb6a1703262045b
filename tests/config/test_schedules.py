"""Flags that are a number, or a schedule: what they mean, and what a run keeps of them."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from bert_pretrain.config.continuing import flags_to_compare
from bert_pretrain.config.pretraining import parse_config
from bert_pretrain.config.schedules import Lengths, Ramp, Rates
from bert_pretrain.errors import InputError

GIVEN = {
    "max_seq_length": ("24:.5,48:0.50", "24:0.5,48:0.5"),
    "mlm_probability": (".30:0.15", "0.3:0.15"),
    "batch_size_ramp": ("08:.25", "8:0.25"),
}


def flags_of(*arguments: str) -> dict[str, Any]:
    flags: dict[str, Any] = json.loads(json.dumps(parse_config(arguments).to_dict()))
    return flags


def test_a_number_is_kept_as_the_number_that_it_always_was() -> None:
    flags = flags_of("--max_seq_length", "64", "--mlm_probability", "0.2")
    assert (flags["max_seq_length"], flags["mlm_probability"]) == (64, 0.2)
    assert (flags_of()["max_seq_length"], flags_of()["mlm_probability"]) == (128, 0.15)
    assert flags_of()["batch_size_ramp"] is None


@pytest.mark.parametrize("name", GIVEN)
def test_a_schedule_is_kept_as_text_however_it_was_written_and_defines_a_run(name: str) -> None:
    written, kept = GIVEN[name]
    flags = flags_of(f"--{name}", written)
    assert flags[name] == kept
    assert flags_of(f"--{name}", kept) == flags
    defining, _ = flags_to_compare(flags)
    assert defining[name] == kept


def test_code_that_knows_no_schedule_reads_the_longest_row_and_the_first_rate() -> None:
    lengths, rates = Lengths("128:0.5,512:0.3,64:0.2"), Rates("0.3:0.15")
    assert lengths == 512 and f"{lengths}" == "512" and lengths.numbers == (128, 512, 64)
    assert rates == 0.3 and rates.last == 0.15 and Rates("0.15").last is None
    for value in (lengths, rates, Ramp("8:0.3")):
        again = copy.deepcopy(value)
        assert type(again) is type(value) and vars(again) == vars(value) and again == value


@pytest.mark.parametrize(
    ("make", "text", "problem"),
    [
        (Lengths, "128:0.9,512:0.1001", r"add up to 1\.0001"),
        (Lengths, "128:0.9,512:", "LENGTH:SHARE"),
        (Lengths, "128:1.1,512:-0.1", r"shares in \(0, 1\]"),
        (Lengths, "", "such as 128 or"),
        (Rates, "0.3,0.15", "FIRST:LAST"),
        (Ramp, "8.5:0.3", "START:SHARE"),
        (Ramp, "8:nan", "START:SHARE"),
    ],
)
def test_what_cannot_be_read_is_said_with_an_example(make: Any, text: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        make(text)


def test_shares_may_be_off_by_rounding() -> None:
    assert Lengths("8:0.3333333,16:0.3333333,32:0.3333333").shares[0] == 0.3333333
