"""The prepared corpus: what is stored, how it is read, and when it is believed."""

from __future__ import annotations

import dataclasses
import json
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import ROOT, write_corpus
from stores import store_of
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from bert_pretrain.commands.prepare import main as prepare_command
from bert_pretrain.data import content
from bert_pretrain.data.digests import damages, write_sealed
from bert_pretrain.errors import InputError
from bert_pretrain.text import preparation, prepared
from bert_pretrain.text.documents import DocumentSource
from bert_pretrain.text.newlines import SplitText
from bert_pretrain.text.prepared import (
    PreparedCorpus,
    TokenStore,
    count_tokens,
    stated_language,
    unigram_entropy,
)
from bert_pretrain.text.sentences import split_sentences
from bert_pretrain.text.tokenizers import has_space_in_words, load_tokenizer

WORDS = [
    "the",
    "function",
    "returns",
    "unbelievably",
    "interesting",
    "of",
    "each",
    "argument",
    "café",
    "42",
    "<x>",
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return load_tokenizer(None)


def make_texts(count: int = 40, seed: int = 0) -> list[str]:
    generator = np.random.default_rng(seed)

    def sentence() -> str:
        return " ".join(generator.choice(WORDS, size=generator.integers(2, 9))).capitalize() + "."

    return [
        "\n".join(sentence() for _ in range(generator.integers(1, 7))) + f" Number {i}."
        for i in range(count)
    ]


def source_of(texts: list[str], fingerprint: str = "one") -> DocumentSource:
    return DocumentSource("test texts", fingerprint, lambda: iter(texts))


@pytest.fixture
def prepare(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Callable[..., PreparedCorpus]:
    def call(texts: list[str] | DocumentSource, **options: Any) -> PreparedCorpus:
        source = source_of(texts) if isinstance(texts, list) else texts
        defaults: dict[str, Any] = {
            "output_dir": tmp_path / "corpus",
            "language": "en",
            "validation_share": 0.1,
            "seed": 1,
            "show_progress": False,
        }
        chosen = options.pop("tokenizer", tokenizer)
        return preparation.prepare_corpus(source, chosen, **{**defaults, **options})

    return call


def assert_same_documents(
    store: TokenStore, texts: list[str], tokenizer: PreTrainedTokenizerFast
) -> None:
    """Compare with the obvious way: one sentence at a time, where ## continues a word."""
    position = document = 0
    for shard in store.shards:
        assert (shard.first_token, shard.first_document) == (position, document)
        assert shard.sentences_per_document.sum() == len(shard.sentence_lengths)
        assert shard.sentence_lengths.sum() == len(shard.tokens) == len(shard.word_starts)
        sentence = 0
        for num_sentences in shard.sentences_per_document:
            pieces = [tokenizer.tokenize(s) for s in split_sentences(texts[document], "en")]
            lengths = shard.sentence_lengths[sentence : sentence + num_sentences]
            assert lengths.tolist() == [len(p) for p in pieces]
            flat = [piece for p in pieces for piece in p]
            assert tokenizer.convert_ids_to_tokens(store.read(position, len(flat)).tolist()) == flat
            expected = [not piece.startswith("##") for piece in flat]
            assert store.read_word_starts(position, len(flat)).tolist() == expected
            position += len(flat)
            sentence += int(num_sentences)
            document += 1
    assert (store.num_tokens, store.num_documents) == (position, document)
    assert document == len(texts)


@pytest.mark.parametrize("tokens_per_batch", [1, 100, 10**6])
@pytest.mark.parametrize("sentences_per_batch", [1, 7, 2000])
def test_tokens_words_and_sentences_equal_the_obvious_way_for_any_batching(
    prepare: Callable[..., PreparedCorpus],
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    tokens_per_batch: int,
    sentences_per_batch: int,
) -> None:
    monkeypatch.setattr(preparation, "_TOKENS_PER_RECORD_BATCH", tokens_per_batch)
    monkeypatch.setattr(preparation, "_SENTENCES_PER_BATCH", sentences_per_batch)
    texts = make_texts()
    corpus = prepare(texts)
    assert_same_documents(corpus.store, texts, tokenizer)
    num_shards = {1: len(texts), 10**6: 1}.get(tokens_per_batch)
    assert num_shards is None or len(corpus.store.shards) == num_shards


def test_the_manifest_counts_what_is_stored(
    prepare: Callable[..., PreparedCorpus], tokenizer: PreTrainedTokenizerFast
) -> None:
    texts = make_texts()
    unknown = "日" * 3 + " word. "
    source = source_of([*texts, texts[3], " ", "\u200b", unknown, "\u200b. Word.\n\u200b"])
    manifest = prepare(source).manifest
    sentences = [s for text in [*texts, unknown, ". Word."] for s in split_sentences(text, "en")]
    num_tokens = sum(len(tokenizer.tokenize(s)) for s in sentences)
    assert manifest["counts"]["documents"] == 42
    assert manifest["counts"]["sentences"] == len(sentences)
    assert manifest["counts"]["tokens"] == num_tokens
    assert manifest["unknown_rate"] == pytest.approx(3 / num_tokens)
    assert manifest["skipped"]["duplicates"] == 1
    assert manifest["skipped"]["empty"] == 1
    assert manifest["skipped"]["documents without tokens"] == 1


def test_validation_documents_depend_on_text_and_seed_and_not_on_order(
    prepare: Callable[..., PreparedCorpus],
) -> None:
    texts = make_texts(50)

    def held_out(order: list[str], name: str, **options: Any) -> set[str]:
        corpus = prepare(source_of(order, name), **options)
        both = np.concatenate([corpus.train_documents, corpus.validation_documents])
        assert sorted(both.tolist()) == list(range(50))
        assert (np.diff(corpus.validation_documents) > 0).all()
        return {order[i] for i in corpus.validation_documents}

    first = held_out(texts, "a")
    assert 0.07 * sum(map(len, texts)) < sum(map(len, first)) < 0.13 * sum(map(len, texts))
    assert held_out(texts[::-1], "b") == first
    assert held_out(texts, "c", seed=2) != first
    assert held_out(texts, "d", validation_share=0.2) > first


@pytest.mark.parametrize(("count", "share", "expected"), [(3, 0.01, 1), (4, 0.01, 2), (9, 0.0, 0)])
def test_of_four_documents_at_least_two_are_held_out_unless_nothing_is_to_be(
    prepare: Callable[..., PreparedCorpus], count: int, share: float, expected: int
) -> None:
    corpus = prepare(make_texts(count), validation_share=share)
    assert len(corpus.validation_documents) == expected
    counts = corpus.manifest["counts"]
    assert counts["validation_documents"] == expected
    assert (counts["validation_tokens"] > 0) == (expected > 0)


def test_reading_maps_the_file_and_copies_nothing(
    prepare: Callable[..., PreparedCorpus], tmp_path: Path
) -> None:
    prepare(make_texts(2000))
    before = pa.total_allocated_bytes()
    corpus = PreparedCorpus.load(tmp_path / "corpus")
    assert pa.total_allocated_bytes() == before
    for shard in corpus.store.shards:
        for array in (shard.tokens, shard.word_starts, shard.sentence_lengths):
            assert not array.flags.owndata and not array.flags.writeable
    assert corpus.store.shards[0].tokens.dtype == np.uint16
    assert np.shares_memory(corpus.store.read(5, 3), corpus.store.shards[0].tokens)


def test_a_worker_gets_the_path_and_not_the_corpus(prepare: Callable[..., PreparedCorpus]) -> None:
    store = prepare(make_texts(500)).store
    message = pickle.dumps(store)
    assert len(message) < 500
    copy = pickle.loads(message)
    assert np.array_equal(copy.read(0, 50), store.read(0, 50))
    in_memory = store_of([[[1, 2], [3]], [[4]]])
    assert pickle.loads(pickle.dumps(in_memory)).read(0, 3).tolist() == [1, 2, 3]


def test_large_vocabularies_are_stored_in_32_bits(prepare: Callable[..., PreparedCorpus]) -> None:
    tokenizer = load_tokenizer(None)
    tokenizer.add_tokens([f"zq{number}" for number in range(2**16)])
    store = prepare(["The zq65535 word. Another zq1.", *make_texts(4)], tokenizer=tokenizer).store
    assert store.shards[0].tokens.dtype == np.uint32
    assert store.read(1, 1).tolist() == [8192 + 65535]


def test_a_byte_level_tokenizer_cuts_a_sentence_as_it_stands_in_its_text(
    prepare: Callable[..., PreparedCorpus],
) -> None:
    """As RoBERTa's and ModernBERT's: the oracle is the encoding of the whole document."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = ["The tree returns. Of each argument. The tree is 42.", *make_texts(20)]
    backend.train_from_iterator(texts, trainer)
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, **dict(zip(names, special, strict=True))
    )
    assert has_space_in_words(tokenizer) and not has_space_in_words(load_tokenizer(None))
    store = prepare(texts[:1], tokenizer=tokenizer, validation_share=0.5).store
    expected = backend.encode(texts[0]).ids
    assert store.read(0, store.num_tokens).tolist() == expected
    assert len(store.shards[0].sentence_lengths) == 3


def test_a_tokenizer_left_truncating_and_padding_still_sees_everything(
    prepare: Callable[..., PreparedCorpus],
) -> None:
    tokenizer = load_tokenizer(None)
    tokenizer("x", truncation=True, max_length=4, padding="max_length")
    texts = make_texts(10)
    assert_same_documents(prepare(texts, tokenizer=tokenizer).store, texts, load_tokenizer(None))


def test_the_same_corpus_is_not_prepared_twice_and_another_replaces_it(
    prepare: Callable[..., PreparedCorpus],
) -> None:
    texts = make_texts()
    key = prepare(texts).manifest["key"]
    unreadable = DocumentSource("test texts", "one", lambda: pytest.fail("read again"))
    assert prepare(unreadable).manifest["key"] == key
    changes: list[dict[str, Any]] = [{"seed": 2}, {"validation_share": 0.2}, {"language": "de"}]
    keys = {key} | {prepare(texts, **change).manifest["key"] for change in changes}
    keys.add(prepare(source_of(texts, "two")).manifest["key"])
    assert len(keys) == 5


def test_a_language_is_that_which_was_stated_last_and_changes_no_corpus(
    prepare: Callable[..., PreparedCorpus], tmp_path: Path
) -> None:
    corpus = prepare(make_texts(), language=None)
    assert corpus.language is None and corpus.manifest["sentence_rules"] == "en"
    embedded = DocumentSource("test texts", "one", lambda: pytest.fail("read again"), language="en")
    unreadable = dataclasses.replace(embedded, language=None)
    for source, stated, expected in (
        (unreadable, "en", "en"),
        (unreadable, None, None),
        (embedded, None, "en"),
    ):
        again = prepare(source, language=stated)
        assert (again.language, again.manifest["key"]) == (expected, corpus.manifest["key"])
        assert PreparedCorpus.load(tmp_path / "corpus").language == expected


@pytest.mark.parametrize(("rules", "stated"), [("en", None), ("de", "de")])
def test_of_an_older_corpus_only_a_language_that_must_have_been_stated_is_known(
    rules: str, stated: str | None
) -> None:
    assert stated_language({"language": rules}) == stated


@pytest.mark.parametrize("name", ["notes.txt", "manifest.json"])
def test_a_folder_with_other_things_is_refused_and_left_alone(
    prepare: Callable[..., PreparedCorpus], tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / name).write_text('{"somebody": "else"}')
    with pytest.raises(InputError, match="`output_dir`"):
        prepare(make_texts())
    assert [path.name for path in folder.iterdir()] == [name]
    assert (folder / name).read_text() == '{"somebody": "else"}'


def test_an_interrupted_preparation_leaves_nothing_to_believe(
    prepare: Callable[..., PreparedCorpus], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    texts = make_texts()

    def interrupted() -> Iterator[str]:
        yield from texts[:20]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(DocumentSource("test texts", "one", interrupted))
    assert not (tmp_path / "corpus").exists()
    assert_same_documents(prepare(texts).store, texts, tokenizer)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["corpus"]


def test_a_line_that_is_a_sentence_is_not_split_further(
    prepare: Callable[..., PreparedCorpus],
) -> None:
    text = "The tree. Of each argument!\n\nThe function returns.\n"
    for document, expected in ((text, 3), (SplitText(text), 2)):
        corpus = prepare(source_of([document, "Each tree."], str(expected)))
        counts = corpus.store.shards[0].sentences_per_document
        assert counts.tolist() == [expected, 1]


def test_what_is_noted_of_a_text_is_in_the_manifest_and_does_not_prepare_it_again(
    prepare: Callable[..., PreparedCorpus],
) -> None:
    source = dataclasses.replace(source_of(make_texts()), notes=("left out: a.pdf",))
    key = prepare(source).manifest["key"]
    unreadable = DocumentSource("test texts", "one", lambda: pytest.fail("read again"))
    for notes in ((), ("left out: b.pdf",), ("left out: b.pdf",)):
        manifest = prepare(dataclasses.replace(unreadable, notes=notes)).manifest
        assert manifest["notes"] == list(notes) and manifest["key"] == key


def test_an_old_corpus_survives_an_interrupted_replacement(
    prepare: Callable[..., PreparedCorpus], tmp_path: Path
) -> None:
    key = prepare(make_texts()).manifest["key"]
    with pytest.raises(InputError, match="no text"):
        prepare(source_of([" "], "two"))
    assert PreparedCorpus.load(tmp_path / "corpus").manifest["key"] == key


def test_of_several_callers_one_prepares_and_all_load(
    prepare: Callable[..., PreparedCorpus],
) -> None:
    num_reads = 0
    texts = make_texts()

    def read() -> Iterator[str]:
        nonlocal num_reads
        num_reads += 1
        return iter(texts)

    keys: list[str] = []
    source = DocumentSource("test texts", "one", read)
    threads = [
        threading.Thread(target=lambda: keys.append(prepare(source).manifest["key"]))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert num_reads == 1
    assert len(keys) == 4 and len(set(keys)) == 1


def test_an_incomplete_folder_is_one_message(
    prepare: Callable[..., PreparedCorpus], tmp_path: Path
) -> None:
    prepare(make_texts())
    arrow = tmp_path / "corpus" / "corpus.arrow"
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(InputError, match="no complete prepared corpus"):
        PreparedCorpus.load(tmp_path / "corpus")
    with pytest.raises(InputError, match="no complete prepared corpus"):
        PreparedCorpus.load(tmp_path)


def flip(path: Path, place: int) -> None:
    """Change one bit, as a disk may, a share of the way into a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", [*prepared.FILES, prepared.MANIFEST])
def test_one_flipped_bit_anywhere_is_one_message_and_preparing_again_cures_it(
    prepare: Callable[..., PreparedCorpus],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    texts = make_texts()
    prepare(texts)
    path = tmp_path / "corpus" / name
    whole = path.read_bytes()
    generator = np.random.default_rng(3)
    for place in (0, len(whole) - 2, *generator.integers(len(whole), size=6).tolist()):
        flip(path, place)
        with pytest.raises(
            InputError, match=r"corpus (is no complete|was written in format).*again"
        ):
            PreparedCorpus.load(tmp_path / "corpus")
        path.write_bytes(whole)
    flip(path, len(whole) // 2)
    capsys.readouterr()
    prepare(texts)
    assert capsys.readouterr().err.count("it is prepared again") == 1
    assert path.read_bytes() == whole


def test_a_damaged_manifest_among_files_of_somebody_else_is_left_alone(
    prepare: Callable[..., PreparedCorpus], tmp_path: Path
) -> None:
    prepare(make_texts())
    (tmp_path / "corpus/manifest.json").write_text("{")
    (tmp_path / "corpus/notes.txt").write_text("mine")
    with pytest.raises(InputError, match="neither empty nor a prepared corpus"):
        prepare(make_texts())
    assert (tmp_path / "corpus/notes.txt").read_text() == "mine"


def test_files_are_read_for_their_digests_once(
    prepare: Callable[..., PreparedCorpus], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(content, "_SETTLED_NANOSECONDS", 0)
    prepare(make_texts())
    monkeypatch.setattr(content, "_hash", lambda *_: pytest.fail("read again"))
    corpus = PreparedCorpus.load(tmp_path / "corpus")
    assert damages(corpus.folder, corpus.manifest["files"]) == {}
    with pytest.raises(pytest.fail.Exception, match="read again"):
        damages(corpus.folder, corpus.manifest["files"], anew=True)
    (tmp_path / "corpus/corpus.arrow").touch()
    with pytest.raises(pytest.fail.Exception, match="read again"):
        PreparedCorpus.load(tmp_path / "corpus")


def rewrite_sealed(folder: Path) -> None:
    """Write the digests of what is there, as a stranger can who made it."""
    manifest = json.loads((folder / "manifest.json").read_text())
    prepared.write_manifest(folder, {**manifest, "files": None})


def test_a_strangers_file_that_leads_out_of_itself_is_refused(
    prepare: Callable[..., PreparedCorpus], tmp_path: Path
) -> None:
    prepare(make_texts())
    path = tmp_path / "corpus/corpus.arrow"
    content = path.read_bytes()
    (batch,) = pa.ipc.open_stream(content).read_all().to_batches()
    offsets = np.array(batch.column("input_ids").offsets)
    beyond = offsets.copy()
    beyond[-1] = 2**30
    assert content.count(offsets.tobytes()) == 2  # of the tokens and of their word starts
    path.write_bytes(content.replace(offsets.tobytes(), beyond.tobytes()))
    rewrite_sealed(tmp_path / "corpus")
    with pytest.raises(InputError, match=r"no complete prepared corpus \(.*offset"):
        PreparedCorpus.load(tmp_path / "corpus")


@pytest.mark.parametrize("name", ["text", "input_ids"])
def test_a_strangers_file_of_other_columns_is_refused(
    prepare: Callable[..., PreparedCorpus], tmp_path: Path, name: str
) -> None:
    prepare(make_texts())
    made = pa.RecordBatch.from_arrays([pa.array([1, 2])], names=[name])
    with pa.ipc.new_stream(str(tmp_path / "corpus/corpus.arrow"), made.schema) as writer:
        writer.write_batch(made)
    rewrite_sealed(tmp_path / "corpus")
    with pytest.raises(InputError, match="other columns than input_ids"):
        PreparedCorpus.load(tmp_path / "corpus")


def test_held_out_documents_that_there_are_not_are_refused(
    prepare: Callable[..., PreparedCorpus], tmp_path: Path
) -> None:
    prepare(make_texts())
    np.save(tmp_path / "corpus/validation_documents.npy", np.array([3, 40]))
    rewrite_sealed(tmp_path / "corpus")
    with pytest.raises(InputError, match="holds out documents that there are not"):
        PreparedCorpus.load(tmp_path / "corpus")


def test_a_manifest_that_names_other_files_is_refused(
    prepare: Callable[..., PreparedCorpus], tmp_path: Path
) -> None:
    prepare(make_texts())
    (tmp_path / "outside").write_text("of somebody else")
    path = tmp_path / "corpus/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["../outside"] = "0" * 64
    write_sealed(path, manifest)
    with pytest.raises(InputError, match="does not list its files"):
        PreparedCorpus.load(tmp_path / "corpus")


def test_a_refused_preparation_leaves_nothing_behind(
    prepare: Callable[..., PreparedCorpus], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="no text"):
        prepare(source_of([" "]), output_dir=tmp_path / "new/corpus")
    assert list(tmp_path.iterdir()) == []
    prepare(make_texts(), output_dir=tmp_path / "new/corpus")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["corpus"]


def test_the_manifest_names_the_files_that_were_read_and_where_they_lie_now(
    prepare: Callable[..., PreparedCorpus], tmp_path: Path
) -> None:
    one, two, moved = ({"path": path, "sha256": "0" * 64} for path in ("/a.txt", "/b", "/c.txt"))
    source = dataclasses.replace(source_of(make_texts()), files=[one])
    held_out = dataclasses.replace(source_of(make_texts(5, seed=9), "held out"), files=[two])
    corpus = prepare(source, held_out=held_out)
    assert corpus.manifest["source"]["files"] == [one, two]
    prepare(dataclasses.replace(source, files=[moved], read=pytest.fail), held_out=held_out)
    manifest = PreparedCorpus.load(tmp_path / "corpus").manifest
    assert manifest["source"]["files"] == [moved, two] and manifest["key"] == corpus.manifest["key"]
    modified = (tmp_path / "corpus/manifest.json").stat().st_mtime_ns
    prepare(dataclasses.replace(source, files=[moved], read=pytest.fail), held_out=held_out)
    assert (tmp_path / "corpus/manifest.json").stat().st_mtime_ns == modified


def test_a_corpus_of_another_format_is_refused(
    prepare: Callable[..., PreparedCorpus], tmp_path: Path
) -> None:
    prepare(make_texts())
    manifest = tmp_path / "corpus/manifest.json"
    current = f'"format_version": {prepared.FORMAT_VERSION}'
    manifest.write_text(manifest.read_text().replace(current, '"format_version": 1'))
    with pytest.raises(InputError, match="format 1"):
        PreparedCorpus.load(tmp_path / "corpus")


def test_the_prepare_command_takes_its_documented_flags(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """`--tokenizer` is the command's name for what other commands call --tokenizer_name."""
    text = write_corpus(tmp_path / "corpus.jsonl")
    texts = [json.loads(line)["text"] for line in text.read_text().splitlines()]
    default = str(ROOT / "tokenizer/docs-uncased-8192")
    for spelling, num_workers in (("--tokenizer", "1"), ("--tokenizer_name", "0")):
        folder = tmp_path / spelling.strip("-")
        flags = f"--data_files {text} {spelling} {default} --output_dir {folder}".split()
        assert prepare_command([*flags, "--preprocessing_num_workers", num_workers]) == 0
        assert_same_documents(PreparedCorpus.load(folder).store, texts, tokenizer)


def test_a_text_without_a_sentence_is_one_message(prepare: Callable[..., PreparedCorpus]) -> None:
    with pytest.raises(InputError, match="no sentence"):
        prepare(["\u200b"])


def test_the_manifest_names_what_made_the_corpus(
    prepare: Callable[..., PreparedCorpus], tmp_path: Path
) -> None:
    prepare(make_texts())
    manifest = json.loads((tmp_path / "corpus" / "manifest.json").read_text())
    source = {"description": "test texts", "fingerprint": "one", "files": []}
    assert manifest["source"] == source
    assert manifest["tokenizer"]["vocab_size"] == 8192
    assert {"datasets", "tokenizers", "sentencex"} <= manifest["versions"].keys()


def naive_counts(corpus: PreparedCorpus) -> list[int]:
    """Walk through the corpus document by document and count one token after the other."""
    counts = [0] * 8192
    training = set(corpus.train_documents.tolist())
    for shard in corpus.store.shards:
        tokens, lengths = iter(shard.tokens.tolist()), iter(shard.sentence_lengths.tolist())
        for offset, num_sentences in enumerate(shard.sentences_per_document.tolist()):
            for _ in range(sum(next(lengths) for _ in range(num_sentences))):
                counts[next(tokens)] += shard.first_document + offset in training
    return counts


def test_token_counts_are_of_the_training_documents_and_written_once(
    prepare: Callable[..., PreparedCorpus], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(preparation, "_TOKENS_PER_RECORD_BATCH", 100)
    expected = naive_counts(prepare(make_texts()))
    stored = np.load(tmp_path / "corpus/token_counts.npy")
    assert stored.dtype == np.int64 and stored.tolist() == expected
    monkeypatch.setattr(prepared, "count_tokens", lambda *_: pytest.fail("counted again"))
    assert PreparedCorpus.load(tmp_path / "corpus").token_counts.tolist() == expected


def test_ids_beyond_the_size_of_a_vocabulary_with_gaps_are_counted() -> None:
    store = store_of([[[1, 7]], [[2, 1]], [[9]]], documents_per_shard=1)
    counts = count_tokens(store, np.array([0, 1]), 5)
    assert counts.tolist() == [0, 2, 1, 0, 0, 0, 0, 1]
    assert count_tokens(store, np.array([1]), 5).tolist() == [0, 1, 1, 0, 0]


def test_the_unigram_entropy_is_that_of_the_shares() -> None:
    assert unigram_entropy(np.array([0, 5, 5, 0])) == pytest.approx(np.log(2))
    assert unigram_entropy(np.array([3, 0])) == 0
    shares = np.array([1, 2, 5]) / 8
    by_hand = -sum(share * np.log(share) for share in shares)
    assert unigram_entropy(np.array([1, 0, 2, 5])) == pytest.approx(by_hand)


documents = st.lists(
    st.lists(st.lists(st.integers(0, 999), min_size=1, max_size=5), min_size=1, max_size=4),
    min_size=1,
    max_size=8,
)


@settings(max_examples=100)
@given(documents, st.integers(1, 9), st.data())
def test_any_range_inside_a_document_reads_as_from_one_long_list(
    texts: list[list[list[int]]], documents_per_shard: int, data: st.DataObject
) -> None:
    store = store_of(texts, documents_per_shard=documents_per_shard)
    flat = [token for text in texts for sentence in text for token in sentence]
    lengths = [sum(map(len, text)) for text in texts]
    document = data.draw(st.integers(0, len(texts) - 1))
    offset = data.draw(st.integers(0, lengths[document] - 1))
    length = data.draw(st.integers(0, lengths[document] - offset))
    start = sum(lengths[:document]) + offset
    assert store.read(start, length).tolist() == flat[start : start + length]
    assert store.read_word_starts(start, length).tolist() == [1] * length
    assert store.num_tokens == len(flat)
    assert store.num_documents == len(texts)
