"""Claims about judging next-sentence prediction: which pairs are judged, and what is counted."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stores import store_of
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForPreTraining,
)

from bert_pretrain.__main__ import main
from bert_pretrain.commands.suites.context import load_language_model
from bert_pretrain.evaluation.next_sentence import (
    balanced_rows,
    judge_next_sentences,
    random_probabilities,
)
from bert_pretrain.text.pairs import EpochPlan, plan_epoch, plan_neighbours
from bert_pretrain.text.prepared import TokenStore
from bert_pretrain.text.tokenizers import load_tokenizer
from tests.runs import write_corpus

NEXT, RANDOM = 0, 1


def make_store(*, num_documents: int = 40, max_sentences: int = 25, seed: int = 0) -> TokenStore:
    """Return documents whose tokens tell where they stand: all different, ascending."""
    generator = random.Random(seed)
    token = 5
    documents = []
    for _ in range(num_documents):
        document = []
        for _ in range(generator.randint(1, max_sentences)):
            length = generator.randint(1, 9)
            document.append(list(range(token, token + length)))
            token += length
        documents.append(document)
    return store_of(documents, dtype=np.uint32, documents_per_shard=7)


def spans(plan: EpochPlan) -> list[tuple[range, range, int]]:
    columns = (plan.a_start, plan.a_length, plan.b_start, plan.b_length, plan.next_sentence_label)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [(range(a, a + m), range(b, b + n), label) for a, m, b, n, label in rows]


def document_of(store: TokenStore) -> np.ndarray:
    lengths = []
    for shard in store.shards:
        ends = np.cumsum(shard.sentences_per_document)
        lengths += [int(part.sum()) for part in np.split(shard.sentence_lengths, ends)[:-1]]
    return np.repeat(np.arange(store.num_documents), lengths)


def test_hard_pairs_are_of_one_document_and_random_ones_neither_follow_nor_overlap() -> None:
    store = make_store()
    documents = np.arange(0, store.num_documents, 2)
    document = document_of(store)
    plan, num_without = plan_neighbours(store, documents, max_seq_length=32, seed=3)
    used = set()
    for a, b, label in spans(plan):
        assert len(a) >= 1 and len(b) >= 1 and len(a) + len(b) <= 32 - 3
        (home,) = {int(document[place]) for place in (a[0], a[-1], b[0], b[-1])}
        assert home % 2 == 0
        used.add(home)
        assert (label == NEXT) == (b.start == a.stop)
        assert not set(a) & set(b)
    assert num_without == len(documents) - len(used) > 0
    labels = Counter(plan.next_sentence_label.tolist())
    # Pairs come in twos with one fair coin each: within 4 sigma of half.
    assert abs(labels[RANDOM] - labels[NEXT]) <= 4 * 2 * np.sqrt(len(plan) / 2)


def test_hard_pairs_do_not_give_themselves_away() -> None:
    """Each B stands once, after its A or after another of the same length, by the seed."""
    store = make_store(num_documents=300)
    documents = np.arange(store.num_documents)
    plan, _ = plan_neighbours(store, documents, max_seq_length=32, seed=0)
    assert (
        plan.b_start.tolist()
        != plan_neighbours(store, documents, max_seq_length=32, seed=1)[0].b_start.tolist()
    )
    again, _ = plan_neighbours(store, documents, max_seq_length=32, seed=0)
    assert spans(again) == spans(plan)
    assert len(set(plan.b_start.tolist())) == len(set(plan.a_start.tolist())) == len(plan)
    is_random = plan.next_sentence_label == RANDOM
    for lengths in (plan.a_length, plan.b_length):
        a, b = lengths[is_random], lengths[~is_random]
        assert abs(a.mean() - b.mean()) < 4 * np.sqrt(a.var() / len(a) + b.var() / len(b))


def test_documents_of_one_passage_are_counted_and_may_leave_no_pair() -> None:
    store = store_of([[[5, 6], [7, 8]], [[9, 10, 11]], [[12], [13], [14]]])
    plan, num_without = plan_neighbours(store, np.arange(3), max_seq_length=32, seed=0)
    assert (len(plan), num_without) == (0, 3)


def test_rows_are_balanced_and_at_most_as_many_as_asked_for() -> None:
    labels = np.array([NEXT] * 30 + [RANDOM] * 20, dtype=np.int8)
    for max_rows, expected in ((100, 20), (10, 5), (2, 1)):
        rows = balanced_rows(labels, max_rows=max_rows, seed=1)
        assert Counter(labels[rows].tolist()) == {NEXT: expected, RANDOM: expected}
        assert (np.diff(rows) > 0).all()
    assert (
        balanced_rows(labels, max_rows=10, seed=1).tolist()
        != balanced_rows(labels, max_rows=10, seed=2).tolist()
    )
    assert len(balanced_rows(labels[:30], max_rows=10, seed=1)) == 0


def test_calibration_is_that_worked_out_by_hand() -> None:
    probabilities = np.array([0.93, 0.07, 0.91, 0.55, 0.49, 1.0])
    labels = np.array([RANDOM, NEXT, NEXT, RANDOM, RANDOM, RANDOM], dtype=np.int8)
    scores = judge_next_sentences(probabilities, labels)
    # Judged random, next, random, random, next, random: right but for the third and the fifth.
    assert scores.accuracy == pytest.approx(4 / 6)
    # Bins [.5, .55): .51, wrong. [.55, .6): .55, right. [.9, .95): .93, .93, .91, two of three
    # right. [.95, 1]: 1.
    assert [found.num_pairs for found in scores.bins] == [1, 1, 0, 0, 0, 0, 0, 0, 3, 1]
    expected = (1 * 0.51 + 1 * (1 - 0.55) + 3 * abs(2 / 3 - (0.93 + 0.93 + 0.91) / 3) + 0) / 6
    assert scores.calibration_error == pytest.approx(expected)
    assert scores.confidence == pytest.approx((0.93 + 0.93 + 0.91 + 0.55 + 0.51 + 1.0) / 6)
    squares = [0.07**2, 0.07**2, 0.91**2, 0.45**2, 0.51**2, 0.0]
    assert scores.brier == pytest.approx(sum(squares) / 6)
    assert scores.bins[2].accuracy is None


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder, tokenizer = tmp_path_factory.mktemp("models"), load_tokenizer(None)
    shape: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(
        vocab_size=len(tokenizer),
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.5,
        **shape,
    )
    for name, cls in (("both", BertForPreTraining), ("mlm", BertForMaskedLM)):
        cls(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


def test_probabilities_are_those_of_stock_transformers_one_pair_at_a_time(models: Path) -> None:
    tokenizer = load_tokenizer(str(models / "both"))
    store = make_store(max_sentences=12)
    assert store.num_tokens < len(tokenizer)
    documents = np.arange(store.num_documents)
    plan = plan_epoch(
        store, documents, max_seq_length=48, short_seq_prob=0.0, pair_mode="exact", seed=0, epoch=0
    )
    plan = plan.take(np.arange(0, len(plan), 3))
    model = load_language_model(str(models / "both"), "next-sentence")[0]
    found = random_probabilities(model, tokenizer, store, plan, batch_size=4)
    stock = BertForNextSentencePrediction.from_pretrained(models / "both").eval()
    for (a, b, _), probability in zip(spans(plan), found, strict=True):
        first, second = (store.read(part.start, len(part)).tolist() for part in (a, b))
        input_ids = [
            tokenizer.cls_token_id,
            *first,
            tokenizer.sep_token_id,
            *second,
            tokenizer.sep_token_id,
        ]
        types = [0] * (len(first) + 2) + [1] * (len(second) + 1)
        with torch.no_grad():
            logits = stock(
                input_ids=torch.tensor([input_ids]), token_type_ids=torch.tensor([types])
            ).logits
        assert probability == pytest.approx(float(logits.softmax(-1)[0, 1]), abs=1e-5)
    assert found.std() > 0.01


@pytest.fixture
def run(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run directory as pretraining leaves it, of a model that has seen nothing."""
    monkeypatch.setattr("bert_pretrain.text.preparation.HF_HOME", str(tmp_path / "hf"))
    corpus = write_corpus(tmp_path / "corpus.jsonl", num_documents=60)
    config = {"objective": "mlm_nsp", "seed": 5, "dataset_name": None, "data_files": [str(corpus)]}
    config |= {
        "dataset_config_name": None,
        "dataset_split": "train",
        "validation_share": 0.3,
        "max_seq_length": 32,
    }
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"config": config}))
    (folder / "final").symlink_to(models / "both")
    return folder


def evaluate(flags: list[str], folder: Path) -> dict[str, Any]:
    assert main(["evaluate", "--suite", "nsp", *flags, "--json", str(folder / "figures.json")]) == 0
    record: dict[str, Any] = json.loads((folder / "figures.json").read_text())
    return record


def test_the_command_judges_the_runs_held_out_documents_the_same_every_time(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = evaluate(["--model", str(run)], tmp_path)
    printed = capsys.readouterr().out
    (number,) = re.findall(r"corpus.jsonl: the (\d+) held-out documents", printed)
    assert 14 <= int(number) <= 22  # 30 % of the tokens of 60 documents
    details = record["details"]["nsp"]
    assert details["max_seq_length"] == 32
    for kind in ("easy", "hard"):
        scores = details[kind]
        assert record["figures"][f"nsp_{kind}_accuracy"] == scores["accuracy"]
        assert sum(found["num_pairs"] for found in scores["bins"]) == scores["num_pairs"] > 10
        assert scores["num_pairs"] % 2 == 0 and 0.5 <= scores["confidence"] <= 1
    assert evaluate(["--model", str(run)], tmp_path)["figures"] == record["figures"]
    assert evaluate(["--model", str(run / "final")], tmp_path)["figures"] == record["figures"]
    other = evaluate(["--model", str(run), "--seed", "6", "--max_pairs", "10"], tmp_path)
    assert other["details"]["nsp"]["easy"]["num_pairs"] == 10
    # Another seed draws other pairs, but the run's own decides which documents were held out.
    prepared = (tmp_path / "hf/bert_pretrain/prepared").iterdir()
    assert sum(path.is_dir() for path in prepared) == 1
    assert f"the {number} held-out documents" in capsys.readouterr().out


def test_a_model_trained_on_order_is_judged_by_order(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((run / "run.json").read_text())
    record["config"]["pair_mode"] = "sop"
    (run / "run.json").write_text(json.dumps(record))
    found = evaluate(["--model", str(run)], tmp_path)
    scores = found["details"]["nsp"]["order"]
    assert found["figures"]["nsp_order_accuracy"] == scores["accuracy"]
    assert "nsp_easy_accuracy" not in found["figures"] and scores["num_pairs"] > 10
    assert "half of them swapped" in capsys.readouterr().out


def test_pairs_are_no_longer_than_the_tokenizer_says_unless_that_is_asked_for(
    run: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(models / "both", tmp_path / "short")
    AutoTokenizer.from_pretrained(tmp_path / "short", model_max_length=24).save_pretrained(
        tmp_path / "short"
    )
    flags = ["--model", str(tmp_path / "short"), "--data_files", str(tmp_path / "corpus.jsonl")]
    assert evaluate(flags, tmp_path)["details"]["nsp"]["max_seq_length"] == 24
    assert "WARNING" not in capsys.readouterr().out
    assert (
        evaluate([*flags, "--max_seq_length", "30"], tmp_path)["details"]["nsp"]["max_seq_length"]
        == 30
    )
    assert (
        "WARNING: --max_seq_length is 30 but the tokenizer's model_max_length is 24"
        in capsys.readouterr().out
    )


def test_other_text_is_judged_whole_and_short_documents_are_counted(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.txt"
    sentences = "This is a sentence of a file. It has another one. "
    own.write_text("\n\n".join(f"{number} {sentences}" for number in range(6)))
    flags = ["--model", str(run), "--data_files", str(own)]
    record = evaluate(flags, tmp_path)
    printed = capsys.readouterr().out
    assert "all 6 documents" in printed
    assert "6 of 6 documents are too short" in printed and "hard  no pairs" in printed
    assert (
        record["figures"].keys() >= {"nsp_easy_accuracy"}
        and "nsp_hard_accuracy" not in record["figures"]
    )


def test_one_long_document_has_hard_pairs_alone(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["value", "list", "array", "file", "name"]
    sentences = [f"The {words[i % 5]} of a {words[i % 3]} is {words[i % 4]}." for i in range(120)]
    (tmp_path / "novel.txt").write_text(" ".join(sentences))
    record = evaluate(["--model", str(run), "--data_files", str(tmp_path / "novel.txt")], tmp_path)
    printed = capsys.readouterr().out
    assert "all 1 documents" in printed and "easy  no pairs" in printed
    assert (
        record["details"]["nsp"]["hard"]["num_pairs"] > 4 and "easy" not in record["details"]["nsp"]
    )
    assert (
        record["figures"].keys() >= {"nsp_hard_accuracy"}
        and "nsp_easy_accuracy" not in record["figures"]
    )


def test_text_without_any_pair_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "note.txt").write_text("A sentence.")
    for share in ([], ["--validation_share", "0.3"]):
        with pytest.raises(SystemExit) as stopped:
            evaluate(
                ["--model", str(run), "--data_files", str(tmp_path / "note.txt"), *share], tmp_path
            )
        assert stopped.value.code == 2
        message = capsys.readouterr().err
        assert "note.txt" in message and "--data_files" in message and "--objective" not in message
    assert not (tmp_path / "figures.json").exists()
