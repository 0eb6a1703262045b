"""Claims about what is held out: a share of the tokens, by documents or by ends of long ones."""

from __future__ import annotations

import hashlib
import json
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import store_of
from transformers import PreTrainedTokenizerFast

from bert_pretrain.errors import InputError
from bert_pretrain.text import preparation
from bert_pretrain.text.division import Division, divide
from bert_pretrain.text.documents import DocumentSource, TextSource
from bert_pretrain.text.opening import data_card, open_corpus
from bert_pretrain.text.prepared import PreparedCorpus
from bert_pretrain.text.tokenizers import load_tokenizer

Lengths = list[list[int]]  # documents of sentence lengths

LENGTHS = st.lists(
    st.integers(1, 80).flatmap(lambda n: st.lists(st.integers(1, 9), min_size=n, max_size=n)),
    min_size=1,
    max_size=12,
)


def digest_of(document: list[int], number: int) -> bytes:
    return hashlib.blake2b(f"{number} {document}".encode(), digest_size=16).digest()


def divided(lengths: Lengths, digests: list[bytes], share: float) -> Division:
    return divide(store_of([[[7] * n for n in document] for document in lengths]), digests, share)


def held_out_sentences(lengths: Lengths, division: Division) -> dict[int, range]:
    """Return which sentences of each document are held out."""
    found = {number: range(len(lengths[number])) for number in division.whole.tolist()}
    columns = (division.cut, division.first_part, division.is_last_held_out)
    for number, first_part, is_last in zip(*(column.tolist() for column in columns), strict=True):
        end = len(lengths[number])
        found[number] = range(first_part, end) if is_last else range(first_part)
    return found


@given(LENGTHS, st.sampled_from([0.05, 0.1, 0.3]), st.randoms(use_true_random=False))
@settings(max_examples=150)
def test_the_share_is_of_tokens_and_the_choice_does_not_depend_on_the_order(
    lengths: Lengths, share: float, random: Any
) -> None:
    digests = [digest_of(document, number) for number, document in enumerate(lengths)]
    division = divided(lengths, digests, share)
    found = held_out_sentences(lengths, division)
    total = sum(map(sum, lengths))
    count = {number: sum(lengths[number][i] for i in part) for number, part in found.items()}
    is_cut = set(division.cut.tolist())
    for number, document in enumerate(lengths):
        # Long is what alone is more than half of the share, and has sentences to be cut between.
        assert (number in is_cut) == (len(document) >= 32 and sum(document) > share * total / 2)
    for number in is_cut:
        part, size = found[number], sum(lengths[number])
        assert 2 <= len(part) <= len(lengths[number]) - 2
        assert share * size <= count[number] < share * size + 2 * 9
    whole = [number for number in found if number not in is_cut]
    others = sum(sum(d) for number, d in enumerate(lengths) if number not in is_cut)
    of_whole = sum(count[number] for number in whole)
    assert of_whole <= 1.5 * share * others or len(whole) <= 4  # the shortest, if need be
    if all(sum(d) <= share * others for number, d in enumerate(lengths) if number not in is_cut):
        assert of_whole >= share * others / 2
    for least in (1, 2):  # documents of so many sentences, of which pairs need two on either side
        usable = [number for number, document in enumerate(lengths) if len(document) >= least]
        if len(usable) >= 4:
            assert sum(number in found for number in usable) >= 2

    order = list(range(len(lengths)))
    random.shuffle(order)
    other = divided([lengths[i] for i in order], [digests[i] for i in order], share)
    again = held_out_sentences([lengths[i] for i in order], other)
    if len({sum(document) for document in lengths}) == len(lengths):  # no tie of lengths
        assert {order[number]: part for number, part in again.items()} == found
    assert divided(lengths, digests, 0.0).held_out.tolist() == []


def test_three_documents_of_which_one_is_nearly_all() -> None:
    """By documents one of three was held out: 99.7 % of the tokens, or 0.15 %."""
    lengths = [[10] * 4000, [10] * 6, [10] * 6]
    for seed in range(6):
        digests = [digest_of(document, seed) for document in lengths]
        found = held_out_sentences(lengths, divided(lengths, digests, 0.05))
        share = sum(len(part) for part in found.values()) / 4012
        assert 0.05 <= share < 0.06
        # Both parts have two documents, which pairs need.
        assert len(found) == 2 and 0 in found


def test_a_document_longer_than_the_share_that_cannot_be_cut_is_passed_over() -> None:
    lengths = [[90]] * 3 + [[10]] * 97  # a share of 62 tokens
    for seed in range(40):
        digests = [digest_of(document, n + 1000 * seed) for n, document in enumerate(lengths)]
        whole = divided(lengths, digests, 0.05).whole
        assert whole.min() >= 3 and len(whole) == 6


def test_both_parts_of_a_corpus_of_few_documents_with_pairs_have_some() -> None:
    lengths = [[10] * 5] * 20 + [[10]] * 400
    for seed in range(8):
        digests = [digest_of(document, n + seed) for n, document in enumerate(lengths)]
        whole = divided(lengths, digests, 0.05).whole
        assert 2 <= (whole < 20).sum() <= 10 and 0.03 < len(whole) / 420 < 0.1


def test_half_of_long_documents_give_their_beginning_and_half_their_end() -> None:
    lengths = [[10] * 50 for _ in range(40)]
    digests = [digest_of(document, number) for number, document in enumerate(lengths)]
    division = divided(lengths, digests, 0.04)
    assert len(division.cut) == 40 and 10 < division.is_last_held_out.sum() < 30
    assert set(division.first_part.tolist()) == {2, 48}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return load_tokenizer(None)


def texts_of(counts: list[int]) -> list[str]:
    """Return documents of so many sentences, no two of which are alike."""
    numbers = iter(range(10**6))
    return [
        " ".join(f"The number {next(numbers)} is a value of the list." for _ in range(count))
        for count in counts
    ]


def prepare(
    texts: list[str], tokenizer: PreTrainedTokenizerFast, folder: Path, share: float
) -> PreparedCorpus:
    name = hashlib.blake2b(json.dumps(texts).encode()).hexdigest()
    return preparation.prepare_corpus(
        DocumentSource("texts", name, lambda: iter(texts)),
        tokenizer,
        output_dir=folder / f"share-{share}",
        language="en",
        validation_share=share,
        seed=1,
        show_progress=False,
    )


def sentences_of(
    corpus: PreparedCorpus, documents: np.ndarray, tokenizer: PreTrainedTokenizerFast
) -> list[list[str]]:
    """Read the sentences of some documents, one by one."""
    lengths = [n for shard in corpus.store.shards for n in shard.sentence_lengths.tolist()]
    counts = [n for shard in corpus.store.shards for n in shard.sentences_per_document.tolist()]
    starts, first = [0, *accumulate(lengths)], [0, *accumulate(counts)]
    return [
        [
            tokenizer.decode(corpus.store.read(starts[i], lengths[i]).tolist())
            for i in range(first[number], first[number + 1])
        ]
        for number in documents.tolist()
    ]


@pytest.mark.parametrize("tokens_per_batch", [1, 3000, 10**6])
def test_a_long_document_is_cut_in_two_and_nothing_else_changes(
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tokens_per_batch: int,
) -> None:
    monkeypatch.setattr(preparation, "_TOKENS_PER_RECORD_BATCH", tokens_per_batch)
    texts = texts_of([300, 3, 200, 4, 250])
    uncut, corpus = (prepare(texts, tokenizer, tmp_path, share) for share in (0.0, 0.1))
    assert (uncut.store.num_documents, corpus.store.num_documents) == (5, 8)
    assert corpus.store.num_tokens == uncut.store.num_tokens
    assert corpus.manifest["counts"]["divided_documents"] == 3
    for name in ("tokens", "word_starts", "sentence_lengths"):
        flat = [
            np.concatenate([getattr(shard, name) for shard in made.store.shards])
            for made in (uncut, corpus)
        ]
        assert np.array_equal(*flat)

    def sentences(made: PreparedCorpus, documents: np.ndarray) -> list[str]:
        return list(chain.from_iterable(sentences_of(made, documents, tokenizer)))

    assert sentences(corpus, np.arange(8)) == sentences(uncut, np.arange(5))
    training = sentences(corpus, corpus.train_documents)
    held_out = sentences(corpus, corpus.validation_documents)
    assert len(training) + len(held_out) == 757 and not set(training) & set(held_out)
    counts = corpus.manifest["counts"]
    assert 0.1 <= counts["validation_tokens"] / counts["tokens"] < 0.12
    # Of a cut document, by its share of the tokens.
    size = sum(len(text) for text in " ".join(held_out).split())
    in_words = sum(len(word) for text in texts for word in text.split())
    expected = counts["characters"] * size / in_words
    assert counts["validation_characters"] == pytest.approx(expected, rel=0.05)
    card = data_card(corpus)
    assert f"{counts['validation_tokens']:,} held out: 1" in card and "of 3 long documents" in card
    assert not list((tmp_path / "share-0.1").glob("*.whole"))


def test_characters_and_bytes_are_those_of_the_sentences(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    texts = ["Le caf\u00e9 est ferm\u00e9.  Oui. \n\n Non.", "Another text."]
    counts = prepare(texts, tokenizer, tmp_path, 0.0).manifest["counts"]
    sentences = ["Le caf\u00e9 est ferm\u00e9.", "Oui.", "Non.", "Another text."]
    assert counts["characters"] == sum(map(len, sentences))
    assert counts["bytes"] == counts["characters"] + 2


def write(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def open_here(
    source: TextSource, tokenizer: PreTrainedTokenizerFast, folder: Path, **options: Any
) -> PreparedCorpus:
    return open_corpus(
        source,
        tokenizer,
        seed=1,
        download=lambda name: None,
        output_dir=folder / "corpus",
        show_progress=False,
        **options,
    )


def test_files_of_ones_own_are_held_out_and_no_training_document_is_among_them(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    texts = texts_of([3] * 12)
    train = write(tmp_path / "train.jsonl", [*texts[:9], texts[10], texts[0]])
    valid = write(tmp_path / "valid.jsonl", [*texts[9:], texts[9]])
    source = TextSource(data_files=[train], validation_files=[valid])
    corpus = open_here(source, tokenizer, tmp_path)
    assert len(corpus.train_documents) == 9 and len(corpus.validation_documents) == 3
    held_out = sentences_of(corpus, corpus.validation_documents, tokenizer)
    assert [" ".join(document) for document in held_out] == [
        tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) for text in texts[9:]
    ]
    assert corpus.manifest["skipped"] == {"duplicates": 2, "held out as well": 1}
    card = data_card(corpus)
    assert "held out         valid.jsonl" in card
    assert (
        f"WARNING: 1 training documents are held out as well and left out: '{texts[10][:60]}"
        in (card)
    )
    counts = corpus.manifest["counts"]
    # Two spaces are between the three sentences of each.
    assert counts["validation_characters"] == sum(len(text) - 2 for text in texts[9:])
    key = corpus.manifest["key"]
    write(tmp_path / "valid.jsonl", texts[9:11])
    assert open_here(source, tokenizer, tmp_path).manifest["key"] != key
    share = TextSource(data_files=[train])
    whole = open_here(share, tokenizer, tmp_path, needs_division=False)
    assert len(whole.validation_documents) == 0


def test_the_seed_makes_no_other_corpus_where_it_chooses_nothing(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    texts = texts_of([3] * 12)
    files = {"train": write(tmp_path / "train.jsonl", texts[:9])}
    files["valid"] = write(tmp_path / "valid.jsonl", texts[9:])

    def key(seed: int, **options: Any) -> str:
        source = TextSource(data_files=[files["train"]], **options)
        corpus = open_corpus(
            source,
            tokenizer,
            seed=seed,
            download=lambda name: None,
            output_dir=tmp_path / f"{seed}-{len(options)}",
            show_progress=False,
        )
        return str(corpus.manifest["key"])

    assert key(1, validation_files=[files["valid"]]) == key(2, validation_files=[files["valid"]])
    assert key(1) != key(2)


def test_a_split_of_a_data_set_is_held_out(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    splits = {
        name: Dataset.from_dict({"text": texts_of([2] * number)[number // 2 :]})
        for name, number in (("train", 10), ("test", 6))
    }
    DatasetDict(splits).save_to_disk(tmp_path / "set")
    source = TextSource(dataset_name=str(tmp_path / "set"), validation_split="test")
    corpus = open_here(source, tokenizer, tmp_path)
    assert len(corpus.validation_documents) == 3
    assert len(corpus.train_documents) == 5 - len(
        set(splits["train"]["text"]) & set(splits["test"]["text"])
    )


def test_a_division_that_cannot_be_is_refused_by_name(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    train = write(tmp_path / "train.jsonl", texts_of([3] * 9))
    valid = write(tmp_path / "valid.jsonl", texts_of([4] * 2))
    empty = write(tmp_path / "empty.jsonl", [" "])
    open_here(TextSource(data_files=[train]), tokenizer, tmp_path)
    prepared = str(tmp_path / "corpus")
    for options, expected in (
        ({"validation_files": [valid], "validation_split": "test"}, "both name what is held out"),
        ({"validation_split": "test"}, "no data set with splits"),
        ({"validation_files": ["nowhere.jsonl"]}, "`validation_files`"),
        ({"data_files": None, "dataset_name": prepared, "validation_files": [valid]}, "divided"),
        ({"validation_files": [train]}, "0 to train on and 9 held out"),
        ({"validation_files": [empty]}, "pass other `validation_files`"),
    ):
        fields: dict[str, Any] = {"data_files": [train]} | options
        with pytest.raises(InputError, match=expected):
            open_here(TextSource(**fields), tokenizer, tmp_path / "other")
