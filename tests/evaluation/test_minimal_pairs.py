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
    MinimalPair,
    accuracies,
    read_pairs,
    score_pairs,
    template_pairs,
)
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
        assert [tuple(pair[:3]) for pair in read_pairs(write(tmp_path / name, rows))] == expected


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("{", "line 2, is not JSON"),
        ("[1]", "line 2, is a list but each line must be an object"),
        ({"good": "a"}, "line 2, has 'good' but must"),
        ({"good": "a", "bad": 3}, "line 2, has 3 for a sentence"),
        ({"good": "a", "bad": "  "}, "line 2, has '  ' for a sentence"),
        ({"good": "a", "bad": "a"}, "line 2, has 'a' twice"),
    ],
)
def test_a_line_that_is_no_pair_is_named(tmp_path: Path, row: Any, expected: str) -> None:
    with pytest.raises(InputError, match=expected) as refused:
        read_pairs(write(tmp_path / "own.jsonl", [OURS, row]))
    assert "`pairs_file`" in str(refused.value)


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
    ("good", "expected"),
    [
        ("a [MASK] .", "has a \\[MASK\\]"),
        ("\u200b", "leaves nothing"),
        ("a " * 40, "42 tokens but the model takes 32"),
    ],
)
def test_sentences_that_cannot_be_scored_are_refused(bert: Path, good: str, expected: str) -> None:
    model, tokenizer = BertForMaskedLM.from_pretrained(bert).eval(), load_tokenizer(str(bert))
    with pytest.raises(InputError, match=f"own, line 7, .*{expected}"):
        score_pairs(model, tokenizer, [MinimalPair(good, "b", "g", "own, line 7,")], bf16=False)


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


def test_a_missing_file_of_pairs_is_refused(bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(f"evaluate --model {bert} --suite minimal_pairs --pairs_file no*.jsonl".split())
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: no*.jsonl is no file")
