"""From the name of a text to its corpus: which one is opened, and what is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import environment, write_corpus
from transformers import PreTrainedTokenizerFast

from bert_pretrain.errors import InputError
from bert_pretrain.text.collator import PretrainingCollator
from bert_pretrain.text.documents import TextSource, open_documents
from bert_pretrain.text.layout import read_layouts
from bert_pretrain.text.masking import MaskingRule, ordinary_token_ids
from bert_pretrain.text.opening import corpus_warnings, data_card, open_corpus, refuse_unknown
from bert_pretrain.text.pairs import plan_epoch
from bert_pretrain.text.prepared import PreparedCorpus
from bert_pretrain.text.tokenizer_training import train_wordpiece
from bert_pretrain.text.tokenizers import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return load_tokenizer(None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    write_corpus(folder / "corpus.jsonl", num_documents=20)
    return folder


def open_it(
    source: TextSource, tokenizer: PreTrainedTokenizerFast, folder: Path, **options: object
) -> PreparedCorpus:
    defaults = {"seed": 1, "download": lambda name: None, "show_progress": False}
    return open_corpus(source, tokenizer, **defaults | {"output_dir": folder / "out"} | options)  # type: ignore[arg-type]


def test_a_corpus_is_found_on_disk_and_on_the_hub_by_its_name(
    tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    files = TextSource(data_files=[str(folder / "corpus.jsonl")])
    key = open_it(files, tokenizer, folder).manifest["key"]
    on_disk = TextSource(dataset_name=str(folder / "out"))
    download = {"download": lambda name: pytest.fail(f"asked the Hub for {name}")}
    found = open_it(on_disk, tokenizer, folder, output_dir=None, **download)
    assert found.manifest["key"] == key
    on_hub = {"owner/words": folder / "out"}
    source = TextSource(dataset_name="owner/words")
    found = open_it(source, tokenizer, folder, output_dir=None, download=on_hub.get)
    assert found.manifest["key"] == key


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, "prepared corpus already"),
        ({"newline": "sentence"}, "`newline` means nothing"),
        ({"text_column": "body"}, "`text_column` means nothing"),
        ({"validation_share": 0.2}, "`validation_share` means nothing"),
        ({"language": "de"}, "split by the rules of 'en'"),
    ],
)
def test_a_corpus_that_is_prepared_is_not_read_or_written_anew(
    tokenizer: PreTrainedTokenizerFast, folder: Path, changed: dict[str, Any], expected: str
) -> None:
    open_it(TextSource(data_files=[str(folder / "corpus.jsonl")]), tokenizer, folder)
    source = TextSource(dataset_name=str(folder / "out"), **changed)
    with pytest.raises(InputError, match=expected):
        open_it(source, tokenizer, folder, output_dir=folder / "other")
    assert not (folder / "other").exists()


def test_a_manifest_of_another_program_makes_no_prepared_corpus(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    write_corpus(own / "corpus.jsonl", num_documents=20)
    (own / "manifest.json").write_text('{"version": 3}')
    corpus = open_it(TextSource(dataset_name=str(own)), tokenizer, tmp_path)
    assert corpus.store.num_documents == 20


def test_a_prepared_corpus_is_no_text(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    open_it(TextSource(data_files=[str(folder / "corpus.jsonl")]), tokenizer, folder)
    with pytest.raises(InputError, match="is a prepared corpus, whose text has become tokens"):
        open_documents(TextSource(dataset_name=str(folder / "out")))


def test_text_that_is_held_out_is_read_as_the_other(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Alone it has too few line ends to tell, and would be taken for wrapped lines."""
    lines = [f"this is sentence {i} of the text." for i in range(60)]
    documents = ["\n".join(lines[first : first + 6]) for first in range(0, 60, 6)]
    (tmp_path / "train.txt").write_text("\n\n".join(documents))
    (tmp_path / "valid.txt").write_text("\n\n".join(documents[:2]))
    files = {"data_files": [str(tmp_path / "train.txt")]}
    source = TextSource(**files, validation_files=[str(tmp_path / "valid.txt")])  # type: ignore[arg-type]
    corpus = open_it(source, tokenizer, tmp_path)
    assert corpus.manifest["skipped"]["held out as well"] == 2
    assert sum("newlines" in note for note in corpus.manifest["notes"]) == 1


@pytest.mark.parametrize("num_foreign", [0, 8, 200])
def test_text_that_the_tokenizer_does_not_know_is_refused_and_some_of_it_warned_of(
    tmp_path: Path, num_foreign: int
) -> None:
    english = train_wordpiece(["some words of text. "], vocab_size=200, show_progress=False)
    text = " ".join(["some words. of text."] * 5 + ["\u0436\u0443\u043a"] * num_foreign)
    rows = [json.dumps({"text": f"{text} {'some ' * i}"}) + "\n" for i in range(30)]
    (tmp_path / "own.jsonl").write_text("".join(rows))
    corpus = open_it(TextSource(data_files=[str(tmp_path / "own.jsonl")]), english, tmp_path)
    warnings = corpus_warnings(corpus, "token")
    assert ["unknown to the tokenizer" in line for line in warnings] == [True] * bool(num_foreign)
    if num_foreign == 200:
        with pytest.raises(InputError, match="are unknown to the tokenizer"):
            refuse_unknown(corpus)
    else:
        refuse_unknown(corpus)


def test_a_corpus_of_another_tokenizer_is_refused(
    tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    open_it(TextSource(data_files=[str(folder / "corpus.jsonl")]), tokenizer, folder)
    other = train_wordpiece(["some words"], vocab_size=200, show_progress=False)
    with pytest.raises(InputError, match=r"prepared with the tokenizer .*`tokenizer_name`"):
        open_it(TextSource(dataset_name=str(folder / "out")), other, folder)


def test_the_card_says_what_the_rows_are(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    corpus = open_it(TextSource(data_files=[str(folder / "corpus.jsonl")]), tokenizer, folder)
    options = {"max_seq_length": 32, "short_seq_prob": 0.0, "seed": 1, "epoch": 0}
    pairs, order, single = (
        plan_epoch(corpus.store, corpus.train_documents, pair_mode=mode, **options)  # type: ignore[arg-type]
        for mode in ("exact", "sop", "none")
    )
    card = data_card(corpus, (pairs, 1))
    num_held_out = len(corpus.validation_documents)
    assert f"20 ({20 - num_held_out} training, {num_held_out} held out); skipped: none" in card
    assert "note" not in card
    corpus.manifest["notes"].append("left out: 1 empty (a.txt)")
    assert data_card(corpus, (pairs, 1)).endswith("note             left out: 1 empty (a.txt)")
    num_tokens = int((pairs.a_length + pairs.b_length + 2 + (pairs.b_length > 0)).sum())
    assert f"fill {100 * num_tokens / len(pairs) / 32:.1f} %, random next" in card
    is_pair = pairs.b_length > 0
    assert f"of {is_pair.sum()} pairs, {(~is_pair).sum()} single segments" in card
    assert f"tokens read      {100 * pairs.num_read / pairs.num_tokens:.1f} % an epoch" in card
    assert "WARNING" not in card
    of_order = data_card(corpus, (order, 1), pair_mode="sop")
    assert re.search(r"swapped (49|50)\.\d % of", of_order) and "random next" not in of_order
    assert "random next" not in data_card(corpus, (single, 1))


def test_documents_of_one_word_make_rows_with_one_prediction_each(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    words = ["data", "model", "tree", "list", "value", "array", "file", "name", "index", "type"]
    (tmp_path / "words.txt").write_text("\n\n".join(words))
    corpus = open_it(TextSource(data_files=[str(tmp_path / "words.txt")]), tokenizer, tmp_path)
    assert corpus.token_counts.sum() == len(corpus.train_documents) == 8
    options = {"max_seq_length": 16, "short_seq_prob": 0.1, "seed": 1, "epoch": 0}
    plan = plan_epoch(corpus.store, corpus.train_documents, pair_mode="none", **options)  # type: ignore[arg-type]
    rule = MaskingRule(
        mlm_probability=0.01,
        mask_token_id=tokenizer.mask_token_id,
        ordinary_ids=ordinary_token_ids(tokenizer),
    )
    layouts, pad = read_layouts(tokenizer), tokenizer.pad_token_id
    collator = PretrainingCollator(corpus.store, rule, layouts=layouts, pad_token_id=pad, seed=1)
    batch = collator.collate([(0, np.arange(len(plan)), plan)])
    assert (batch["labels"] != -100).sum(dim=1).tolist() == [1] * 8
    assert (batch["attention_mask"].sum(dim=1) == 3).all()


BARE = """
import sys
for name in ("datasets", "sentencex", "evaluate", "kornia", "sklearn", "pandas", "matplotlib"):
    sys.modules[name] = None  # any import of it fails
import bert_pretrain.text.collator, bert_pretrain.text.pairs, bert_pretrain.text.prepared
from bert_pretrain.text.prepared import PreparedCorpus
from pathlib import Path
corpus = PreparedCorpus.load(Path(sys.argv[1]))
assert corpus.store.read(0, 3).tolist() and corpus.token_counts.sum()
"""


def test_a_corpus_is_read_where_only_numpy_pyarrow_and_torch_are(
    tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    open_it(TextSource(data_files=[str(folder / "corpus.jsonl")]), tokenizer, folder)
    command = [sys.executable, "-c", BARE, str(folder / "out")]
    done = subprocess.run(command, env=environment(folder), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
