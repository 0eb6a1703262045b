"""Claims about the suite `perplexity`: its losses, its intervals, and what they are divided by."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import metrics, run_here, small_flags, write_corpus
from stores import store_of
from transformers import BertConfig, BertForMaskedLM

from bert_pretrain.__main__ import main
from bert_pretrain.evaluation.perplexity import masked_sums
from bert_pretrain.evaluation.statistics import ratio_interval
from bert_pretrain.text.collator import PretrainingCollator
from bert_pretrain.text.layout import RowLayouts
from bert_pretrain.text.masking import MaskingRule
from bert_pretrain.text.pairs import plan_epoch
from bert_pretrain.text.tokenizers import load_tokenizer

VOCAB = 60


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr("bert_pretrain.text.preparation.HF_HOME", str(tmp_path / "hf"))


def small_bert(vocab_size: int, **overrides: Any) -> BertForMaskedLM:
    torch.manual_seed(0)
    fields = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    fields |= {"intermediate_size": 32, "max_position_embeddings": 32, "initializer_range": 0.5}
    return BertForMaskedLM(BertConfig(vocab_size=vocab_size, **(fields | overrides))).eval()


def test_the_sums_of_a_row_are_those_of_the_row_alone() -> None:
    generator = np.random.default_rng(0)
    store = store_of([[generator.integers(5, VOCAB, 40).tolist()] for _ in range(12)])
    plan = plan_epoch(
        store,
        np.arange(12),
        max_seq_length=24,
        short_seq_prob=0.0,
        pair_mode="none",
        seed=0,
        epoch=0,
    )
    rule = MaskingRule(mlm_probability=0.15, mask_token_id=4, ordinary_ids=np.arange(5, VOCAB))
    collator = PretrainingCollator(
        store, rule, layouts=RowLayouts.of_bert(2, 3), pad_token_id=0, seed=0, evaluation=True
    )
    model, rows = small_bert(VOCAB), np.arange(1, len(plan), 2)
    found = masked_sums(model, collator, plan, rows, batch_size=5)
    assert (found.num_masked > 0).all()
    for place, row in enumerate(rows.tolist()):
        batch = collator.collate([(0, rows[place : place + 1], plan.take(rows[place : place + 1]))])
        length = int(plan.a_length[row]) + 2
        with torch.no_grad():
            scores = model(batch["input_ids"][:, :length]).logits[0].log_softmax(-1)
        labels = batch["labels"][0, :length].tolist()
        expected = [-scores[i, label].item() for i, label in enumerate(labels) if label != -100]
        assert found.nats[place] == pytest.approx(sum(expected), rel=1e-5)
        assert found.num_masked[place] == len(expected)
        right = [scores[i].argmax() == label for i, label in enumerate(labels) if label != -100]
        assert found.num_correct[place] == sum(right)


def test_an_interval_over_groups_covers_the_ratio_95_times_in_a_hundred() -> None:
    generator = np.random.default_rng(0)
    num_covered = 0
    for _ in range(2000):
        # Rows of a group are alike: a mean of its own for each, of many or few rows.
        counts = generator.integers(1, 60, 40).astype(float)
        sums = counts * generator.normal(3.0, 1.0, 40)
        ratio, (low, high) = ratio_interval(sums, counts)  # type: ignore[misc]
        assert low < ratio < high and ratio == pytest.approx(sums.sum() / counts.sum())
        num_covered += low <= 3.0 <= high
    # The method is an approximation; 4 sigma of the binomial is .02.
    assert abs(num_covered / 2000 - 0.95) < 0.03
    assert ratio_interval(np.array([3.0, 0.0]), np.array([2.0, 0.0])) == (1.5, None)


def save(folder: Path, model: BertForMaskedLM) -> str:
    model.save_pretrained(folder)
    load_tokenizer(None).save_pretrained(folder)
    return str(folder)


def evaluate(flags: list[str], folder: Path) -> dict[str, Any]:
    target = folder / "figures.json"
    assert main(["evaluate", "--suite", "perplexity", *flags, "--json", str(target)]) == 0
    record: dict[str, Any] = json.loads(target.read_text())
    return record


def test_a_model_that_guesses_has_the_perplexity_of_its_vocabulary_and_a_loss_by_byte(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the same scores everywhere, the loss is the logarithm of their number."""
    tokenizer = load_tokenizer(None)
    model = small_bert(len(tokenizer))
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    folder = save(tmp_path / "model", model)
    texts = ["A caf\u00e9 is a place. It returns a list.", "The value of the array is a name."]
    (tmp_path / "own.txt").write_text("\n\n".join(texts))
    flags = ["--model", folder, "--data_files", str(tmp_path / "own.txt")]
    figures = evaluate(flags, tmp_path)["figures"]
    printed = capsys.readouterr().out
    assert "own.txt: all 2 documents, 2 of 2 rows of up to 32 tokens" in printed
    loss = math.log(len(tokenizer))
    num_tokens = sum(len(tokenizer.tokenize(text)) for text in texts)
    num_characters = sum(map(len, texts)) - 1  # the space between two sentences
    assert figures["perplexity_loss"] == pytest.approx(loss, rel=1e-5)
    assert figures["perplexity_perplexity"] == pytest.approx(len(tokenizer), rel=1e-4)
    per_character, per_byte = (
        loss * num_tokens / size for size in (num_characters, num_characters + 1)
    )
    assert figures["perplexity_nats_per_character"] == pytest.approx(per_character, rel=1e-5)
    assert figures["perplexity_nats_per_byte"] == pytest.approx(per_byte, rel=1e-5)


def test_of_a_run_its_held_out_rows_have_the_loss_that_the_run_had(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    valid = write_corpus(tmp_path / "valid.jsonl", num_documents=7, seed=5)
    flags = [*small_flags(tmp_path), "--objective", "mlm", "--validation_files", str(valid)]
    flags += ["--max_eval_rows", "9", "--max_steps", "2", "--eval_steps", "0"]
    run_here(tmp_path, [*flags, "--output_dir", str(tmp_path / "run")])
    last = [row for row in metrics(tmp_path / "run") if row["split"] == "validation"][-1]
    capsys.readouterr()
    mine = ["--model", str(tmp_path / "run")]
    record = evaluate([*mine, "--max_eval_rows", "9"], tmp_path)
    printed = capsys.readouterr().out
    assert "corpus.jsonl: the 7 held-out documents" in printed and "WARNING" not in printed
    assert record["figures"]["perplexity_loss"] == pytest.approx(last["mlm_loss"], rel=1e-4)
    assert record["figures"]["perplexity_accuracy"] == pytest.approx(last["mlm_accuracy"], abs=0.02)
    assert record["details"]["perplexity"]["num_rows"] == 9
    low, high = record["details"]["perplexity"]["intervals"]["loss"]
    assert low < record["figures"]["perplexity_loss"] < high
    assert evaluate([*mine, "--max_eval_rows", "9"], tmp_path)["figures"] == record["figures"]
    # Another share holds out documents that it was trained on.
    evaluate([*mine, "--validation_share", "0.3"], tmp_path)
    assert "WARNING: the run that wrote this model divided" in capsys.readouterr().out
    # What the run held out says nothing of other text.
    evaluate([*mine, "--data_files", str(valid)], tmp_path)
    assert "valid.jsonl: all 7 documents" in capsys.readouterr().out
    evaluate([*mine, "--data_files", str(valid), "--validation_share", "0.3"], tmp_path)
    assert "valid.jsonl: the 2 held-out documents" in capsys.readouterr().out


def test_a_loss_beyond_all_numbers_has_the_largest_perplexity(tmp_path: Path) -> None:
    model = small_bert(len(load_tokenizer(None)))
    with torch.no_grad():
        model.cls.predictions.bias[0] = 3000.0
    folder = save(tmp_path / "model", model)
    (tmp_path / "own.txt").write_text("It returns a list of names.")
    flags = ["--model", folder, "--data_files", str(tmp_path / "own.txt")]
    figures = evaluate(flags, tmp_path)["figures"]
    assert figures["perplexity_loss"] > 2000 and 1e300 < figures["perplexity_perplexity"] < math.inf
