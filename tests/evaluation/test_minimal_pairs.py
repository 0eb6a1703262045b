"""Minimal pairs: how they are read, judged and counted, and what the command says of them."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from transformers import BertConfig, BertForMaskedLM

from bert_pretrain.__main__ import main
from bert_pretrain.errors import InputError
from bert_pretrain.evaluation import minimal_pairs
from bert_pretrain.evaluation.minimal_pairs import (
    PAIRS_PER_GROUP,
    accuracies,
    leave_out_unscorable,
    score_pairs,
    template_pairs,
)
from bert_pretrain.evaluation.pair_files import LeftOut, MinimalPair, read_pairs, refuse_mostly_bad
from bert_pretrain.evaluation.pseudo_likelihood import encode_sentences
from bert_pretrain.text.tokenizers import load_tokenizer

OURS = {"good": "the files are old .", "bad": "the files is old .", "group": "agreement"}
BLIMP = {
    "sentence_good": "Who should Derek hug after shocking Richard?",
    "sentence_bad": "Who should Derek hug Richard after shocking?",
    "field": "syntax",
    "UID": "adjunct_island",
}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder, tokenizer = tmp_path_factory.mktemp("bert"), load_tokenizer(None)
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    config = BertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=32, initializer_range=0.3, **shape
    )
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write(path: Path, rows: list[Any]) -> Path:
    text = "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_both_formats_are_read_compressed_or_not(tmp_path: Path) -> None:
    rows = [OURS, "", BLIMP, {"good": "a", "bad": "b"}]
    expected = [
        tuple(OURS.values()),
        (BLIMP["sentence_good"], BLIMP["sentence_bad"], BLIMP["UID"]),
        ("a", "b", "own"),
    ]
    for name in ("own.jsonl", "own.jsonl.gz"):
        pairs, left_out = read_pairs(write(tmp_path / name, rows))
        assert [tuple(pair[:3]) for pair in pairs] == expected and not left_out


BAD_ROWS: list[tuple[Any, str, str]] = [
    ("{", "no JSON object", "is not JSON"),
    ("[1]", "no JSON object", "is a list, not an object"),
    ({"good": "a"}, "other fields", "has 'good' but must"),
    ({"good": "a", "bad": 3}, "a sentence without text", "has 3 for a sentence"),
    ({"good": None, "bad": "a"}, "a sentence without text", "has None for a sentence"),
    ({"good": "a", "bad": "  "}, "a sentence without text", "has '  ' for a sentence"),
    ({"good": "a", "bad": "\ud800"}, "a sentence without text", "has '\\ud800' for a sentence"),
    ({"good": "a", "bad": "a"}, "the same sentence twice", "has 'a' twice"),
]


@pytest.mark.parametrize(("row", "reason", "problem"), BAD_ROWS)
def test_a_row_that_is_no_pair_is_left_out_and_named(
    tmp_path: Path, row: Any, reason: str, problem: str
) -> None:
    path = write(tmp_path / "own.jsonl", [OURS, row, BLIMP])
    pairs, left_out = read_pairs(path)
    assert [pair.good for pair in pairs] == [OURS["good"], BLIMP["sentence_good"]]
    [bad] = left_out
    assert (bad.source, bad.reason) == (f"{path}, line 2", reason) and problem in bad.problem


def test_a_file_of_all_kinds_of_bad_rows_is_read_for_its_good_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "own.jsonl", [OURS, *(row for row, _, _ in BAD_ROWS)])
    pairs, left_out = read_pairs(path)
    assert len(pairs) == 1 and len(left_out) == len(BAD_ROWS)


@pytest.mark.parametrize(("row", "reason", "problem"), BAD_ROWS)
def test_a_file_whose_rows_are_mostly_bad_in_the_same_way_is_refused(
    tmp_path: Path, row: Any, reason: str, problem: str
) -> None:
    half = write(tmp_path / "half.jsonl", [OURS, row])
    assert len(read_pairs(half)[0]) == 1
    most = write(tmp_path / "most.jsonl", [OURS, row, row])
    with pytest.raises(InputError, match=r"most.jsonl, line 2, .*; so do 2 of 3 rows") as refused:
        read_pairs(most)
    assert problem in str(refused.value) and "`pairs_file`" in str(refused.value)


def test_nothing_usable_is_an_error_whatever_the_reasons() -> None:
    with pytest.raises(InputError, match="line 1, is odd"):
        refuse_mostly_bad([LeftOut("line 1", "a", "is odd"), LeftOut("line 2", "b", "is even")], 0)
    refuse_mostly_bad([LeftOut("line 1", "a", "is odd"), LeftOut("line 2", "b", "is even")], 1)
    refuse_mostly_bad([], 0)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.jsonl.gz", [OURS] * 50).read_bytes()
    (tmp_path / "torn.jsonl.gz").write_bytes(whole[:-12])
    (tmp_path / "plain.jsonl.gz").write_text(json.dumps(OURS))
    (tmp_path / "latin.jsonl").write_bytes(b'{"good": "\xe9", "bad": "b"}\n')
    (tmp_path / "empty.jsonl").write_text("\n")
    for name in ("torn.jsonl.gz", "plain.jsonl.gz", "latin.jsonl", "empty.jsonl"):
        with pytest.raises(InputError, match=f"{name} .*`pairs_file`"):
            read_pairs(tmp_path / name)


def test_accuracies_count_ties_half_with_wilson_intervals() -> None:
    good = np.array([-1.0, -2.0, -3.0, -4.0, -5.0])
    bad = np.array([-2.0, -1.0, -3.0, -5.0, -9.0])
    overall, (first, second) = accuracies(["x", "y", "x", "y", "y"], good, bad)
    assert (first.group, first.num_pairs, first.num_ties, first.accuracy) == ("x", 2, 1, 0.75)
    assert (second.group, second.num_pairs, second.num_ties, second.accuracy) == (
        "y",
        3,
        0,
        pytest.approx(2 / 3),
    )
    assert (overall.num_pairs, overall.num_ties, overall.accuracy) == (5, 1, pytest.approx(3.5 / 5))
    assert second.interval == pytest.approx(tuple(binomtest(2, 3).proportion_ci(method="wilson")))


def test_pairs_too_close_for_bfloat16_are_judged_in_float32(
    bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = BertForMaskedLM.from_pretrained(bert).eval(), load_tokenizer(str(bert))
    pairs = template_pairs()[::5]
    exact = score_pairs(model, tokenizer, pairs, bf16=False)
    mixed = score_pairs(model, tokenizer, pairs, bf16=True)
    assert not exact.is_rescored.any() and exact.error == 0 < mixed.error < 0.5
    assert ((mixed.good > mixed.bad) == (exact.good > exact.bad)).all()
    rows = mixed.is_rescored
    assert rows.any() and not rows.all()
    np.testing.assert_allclose(mixed.good[:, rows], exact.good[:, rows], rtol=1e-5)
    assert (np.abs(mixed.good - mixed.bad)[:, ~rows] >= 3 * mixed.error).all()


@pytest.mark.parametrize(
    ("good", "reason", "problem"),
    [
        ("\u200b", "a sentence without tokens", "leaves nothing"),
        ("a " * 40, "a sentence longer than the model takes", "42 tokens but the model takes 32"),
    ],
)
@pytest.mark.parametrize("side", [0, 1])
def test_pairs_that_cannot_be_scored_are_left_out(
    good: str, reason: str, problem: str, side: int
) -> None:
    usable = MinimalPair("a cat .", "a cats .", "g", "own, line 6")
    sentences = (good, "b")[:: 1 - 2 * side]
    unusable = MinimalPair(*sentences, "g", "own, line 7")
    tokenizer = load_tokenizer(None)
    pairs, left_out = leave_out_unscorable([usable, unusable, usable], tokenizer, 32)
    assert pairs == [usable, usable]
    [bad] = left_out
    assert (bad.source, bad.reason) == ("own, line 7", reason) and problem in bad.problem


def test_templates_give_distinct_pairs_of_known_words_that_differ_in_one_place() -> None:
    pairs = template_pairs()
    assert pairs == template_pairs()
    assert set(Counter(pair.group for pair in pairs).values()) == {PAIRS_PER_GROUP}
    assert len({pair[:2] for pair in pairs}) == len(pairs) == 6 * PAIRS_PER_GROUP
    for good, bad, group, _ in pairs:
        differing = (
            [a != b for a, b in zip(good.split(), bad.split(), strict=True)]
            if group != "negative polarity"
            else [1]
        )
        assert sum(differing) == 1, (good, bad)
    encoded = encode_sentences(load_tokenizer(None), [pair.good for pair in pairs])
    assert not any((sentence.input_ids == 1).any() for sentence in encoded)  # [UNK]


def test_the_command_counts_by_group_over_all_files(
    bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(
        tmp_path / "a.jsonl", [OURS, {"good": "The Files are old .", "bad": "the files are old ."}]
    )
    write(tmp_path / "b.jsonl.gz", [BLIMP])
    flags = f"--model {bert} --suite minimal_pairs --pairs_file {tmp_path}/*.jsonl*"
    flags += f" --mixed_precision no --json {tmp_path}/out.json"
    assert main(["evaluate", *flags.split()]) == 0
    record = json.loads((tmp_path / "out.json").read_text())
    details = record["details"]["minimal_pairs"]
    assert [group["group"] for group in details["token"]["groups"]] == [
        "agreement",
        "a",
        "adjunct_island",
    ]
    cased = details["pairs"][1]  # the tokenizer folds case, so that both are the same to it
    assert cased["token_good"] == cased["token_bad"]
    wins = sum(
        (row["token_good"] > row["token_bad"]) + (row["token_good"] == row["token_bad"]) / 2
        for row in details["pairs"]
    )
    assert record["figures"]["minimal_pairs_accuracy"] == pytest.approx(wins / 3)
    assert record["figures"]["minimal_pairs_tie_share"] == pytest.approx(1 / 3)
    num_tokens = [
        len(s.words) - 2
        for s in encode_sentences(load_tokenizer(None), [row["good"] for row in details["pairs"]])
    ]
    mean = sum(row["token_good"] for row in details["pairs"]) / sum(num_tokens)
    assert record["figures"]["minimal_pairs_mean_token_log_likelihood"] == pytest.approx(
        mean, rel=1e-5
    )
    assert "adjunct_island" in capsys.readouterr().out


def test_without_a_file_the_command_judges_its_own_templates_and_says_so(
    bert: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minimal_pairs, "_NUM_TRIALS", 2)
    assert main(["evaluate", "--model", str(bert), "--suite", "minimal_pairs"]) == 0
    printed = capsys.readouterr().out
    assert "not BLiMP" in printed and "reflexive pronoun" in printed


def test_bad_rows_end_no_evaluation_and_are_named(
    bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As seven pairs of BLiMP's do, whose sentences are the same twice."""
    long = {"good": "a " * 40, "bad": "the " * 40}
    same = {"sentence_good": "It is so.", "sentence_bad": "It is so.", "UID": "passive_1"}
    path = write(tmp_path / "pairs.jsonl", [OURS, same, BLIMP, long, same, OURS])
    good = write(tmp_path / "good.jsonl", [OURS, BLIMP, OURS])
    records = []
    for pairs_file in (path, good):
        flags = f"evaluate --model {bert} --suite minimal_pairs --mixed_precision no"
        flags += f" --pairs_file {pairs_file} --json {tmp_path}/out.json"
        assert main(flags.split()) == 0
        records.append(json.loads((tmp_path / "out.json").read_text()))
    with_bad, without = records
    assert with_bad["figures"] == without["figures"]
    assert with_bad["details"]["minimal_pairs"]["left_out"] == [
        {"source": f"{path}, line 2", "reason": "the same sentence twice"},
        {"source": f"{path}, line 5", "reason": "the same sentence twice"},
        {"source": f"{path}, line 4", "reason": "a sentence longer than the model takes"},
    ]
    printed = " ".join(capsys.readouterr().out.split())
    assert (
        f"left out of 6 rows: 2 with the same sentence twice ({path}, line 2; {path}, line 5), "
        f"1 with a sentence longer than the model takes ({path}, line 4)"
    ) in printed


def test_pairs_too_long_for_the_model_are_one_error(
    bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = {"good": "a " * 40, "bad": "the " * 40}
    path = write(tmp_path / "pairs.jsonl", [OURS, long, long])
    with pytest.raises(SystemExit) as stopped:
        main(f"evaluate --model {bert} --suite minimal_pairs --pairs_file {path}".split())
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert "line 2, has 42 tokens but the model takes 32; so do 2 of 3 rows" in message
    assert "--pairs_file" in message
