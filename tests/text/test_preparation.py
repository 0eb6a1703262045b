"""The prepared corpus against tokenising every sentence by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from runs import ROOT, write_corpus

from bert_pretrain.commands.prepare import main as prepare
from bert_pretrain.errors import InputError
from bert_pretrain.text.documents import DocumentSource, open_documents, split_sentences
from bert_pretrain.text.preparation import prepare_corpus
from bert_pretrain.text.prepared import PreparedCorpus
from bert_pretrain.text.tokenizers import load_tokenizer

OPTIONS = {"language": "en", "validation_share": 0.1, "seed": 1, "show_progress": False}


@pytest.fixture
def source(tmp_path: Path) -> DocumentSource:
    return open_documents(
        dataset_name=None, data_files=[str(write_corpus(tmp_path / "corpus.jsonl"))]
    )


def documents_of(corpus: PreparedCorpus) -> list[list[list[int]]]:
    documents = []
    position = 0
    for shard in corpus.store.shards:
        lengths = iter(shard.sentence_lengths.tolist())
        for number in shard.sentences_per_document.tolist():
            document = []
            for _ in range(number):
                length = next(lengths)
                document.append(corpus.store.read(position, length).tolist())
                position += length
            documents.append(document)
    return documents


def test_tokens_sentences_and_documents_are_those_of_the_text(
    source: DocumentSource, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(None)
    corpus = prepare_corpus(source, tokenizer, output_dir=tmp_path / "out", **OPTIONS)
    expected = [
        [
            tokenizer(sentence, add_special_tokens=False).input_ids
            for sentence in split_sentences(text, "en")
        ]
        for text in source
    ]
    assert documents_of(corpus) == expected
    assert corpus.manifest["counts"]["tokens"] == sum(
        len(s) for document in expected for s in document
    )
    assert corpus.store.shards[0].tokens.dtype == np.uint16


def test_word_starts_are_where_a_piece_continues_no_word(
    source: DocumentSource, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(None)
    corpus = prepare_corpus(source, tokenizer, output_dir=tmp_path / "out", **OPTIONS)
    for shard in corpus.store.shards:
        tokens = tokenizer.convert_ids_to_tokens(shard.tokens.tolist())
        assert shard.word_starts.tolist() == [int(not token.startswith("##")) for token in tokens]


def test_the_arrays_are_views_of_the_file_and_survive_pickling(
    source: DocumentSource, tmp_path: Path
) -> None:
    import pickle

    corpus = prepare_corpus(source, load_tokenizer(None), output_dir=tmp_path / "out", **OPTIONS)
    assert not corpus.store.shards[0].tokens.flags.owndata
    assert len(pickle.dumps(corpus.store)) < 1_000
    again = pickle.loads(pickle.dumps(corpus.store))
    assert np.array_equal(again.read(3, 4), corpus.store.read(3, 4))


def test_splits_are_disjoint_complete_and_do_not_depend_on_order(
    source: DocumentSource, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(None)
    corpus = prepare_corpus(source, tokenizer, output_dir=tmp_path / "out", **OPTIONS)
    both = np.concatenate([corpus.train_documents, corpus.validation_documents])
    assert sorted(both.tolist()) == list(range(60))
    assert len(corpus.validation_documents) == 6
    texts = list(source)
    backwards = DocumentSource("backwards", "b", lambda: iter(texts[::-1]))
    mirrored = prepare_corpus(backwards, tokenizer, output_dir=tmp_path / "back", **OPTIONS)
    assert (
        sorted((59 - mirrored.validation_documents).tolist())
        == corpus.validation_documents.tolist()
    )


def test_an_unchanged_corpus_is_reused_and_a_changed_one_rebuilt(
    source: DocumentSource, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(None)
    prepare_corpus(source, tokenizer, output_dir=tmp_path / "out", **OPTIONS)
    written = (tmp_path / "out/corpus.arrow").stat().st_mtime_ns
    prepare_corpus(source, tokenizer, output_dir=tmp_path / "out", **OPTIONS)
    assert (tmp_path / "out/corpus.arrow").stat().st_mtime_ns == written
    prepare_corpus(source, tokenizer, output_dir=tmp_path / "out", **(OPTIONS | {"seed": 2}))
    assert (tmp_path / "out/corpus.arrow").stat().st_mtime_ns > written


def test_a_corpus_of_another_format_is_refused(source: DocumentSource, tmp_path: Path) -> None:
    prepare_corpus(source, load_tokenizer(None), output_dir=tmp_path / "out", **OPTIONS)
    manifest = tmp_path / "out/manifest.json"
    manifest.write_text(manifest.read_text().replace('"format_version": 2', '"format_version": 1'))
    with pytest.raises(InputError, match="format 1"):
        PreparedCorpus.load(tmp_path / "out")


def test_the_prepare_command_takes_its_documented_flags(tmp_path: Path) -> None:
    """`--tokenizer` is the command's name for what other commands call --tokenizer_name."""
    text = write_corpus(tmp_path / "corpus.jsonl")
    folders = []
    for spelling, num_workers in (("--tokenizer", "1"), ("--tokenizer_name", "0")):
        folders.append(tmp_path / spelling.strip("-"))
        default = str(ROOT / "tokenizer/docs-uncased-8192")
        flags = [
            "--data_files",
            str(text),
            spelling,
            default,
            "--preprocessing_num_workers",
            num_workers,
        ]
        assert prepare(["--output_dir", str(folders[-1]), *flags]) == 0
    first, second = (PreparedCorpus.load(folder) for folder in folders)
    assert documents_of(first) == documents_of(second)
