"""From a named text to a prepared corpus, and what to say of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from huggingface_hub.constants import HF_HOME
from transformers import PreTrainedTokenizerFast

from bert_pretrain.errors import InputError
from bert_pretrain.text.documents import DocumentBoundary, check_language, open_documents
from bert_pretrain.text.pairs import IS_RANDOM, EpochPlan
from bert_pretrain.text.preparation import corpus_key, prepare_corpus
from bert_pretrain.text.prepared import MANIFEST, PreparedCorpus
from bert_pretrain.text.tokenizers import tokenizer_hash


@dataclass(frozen=True)
class TextSource:
    """Where text comes from and how it is read; each field is the flag of that name.

    Attributes:
        dataset_name: `docs`, a folder or a Hub id, of a data set or of a prepared corpus; None =
            `data_files`, or `docs` where there are none.
        dataset_config_name: configuration of a Hub data set.
        dataset_split: its split.
        data_files: paths or globs, in place of a data set.
        text_column: column that holds the text.
        document_boundary: what ends a document of a .txt.
        streaming: whether to read a Hub data set without downloading it first.
        language: code of the text's language; None = not stated.
        validation_share: share of documents held out, in (0, 0.5).
        preprocessing_num_workers: threads that tokenise; 0 = one per core.
    """

    dataset_name: str | None = None
    dataset_config_name: str | None = None
    dataset_split: str = "train"
    data_files: list[str] | None = None
    text_column: str = "text"
    document_boundary: DocumentBoundary = "blank_line"
    streaming: bool = False
    language: str | None = None
    validation_share: float = 0.05
    preprocessing_num_workers: int = 0


def open_corpus(
    text: TextSource,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    download: Callable[[str], Path | None],
    output_dir: Path | None = None,
    show_progress: bool = True,
    needs_division: bool = True,
) -> PreparedCorpus:
    """Return the prepared corpus of a text, preparing it unless it is there.

    Several processes may call it at once: one prepares, the others wait.

    Args:
        text: where it comes from.
        tokenizer: the model's.
        seed: of the split into training and validation documents.
        download: fetches the folder of a prepared corpus of that name from the Hub; returns None if
            there is none.
        output_dir: where the corpus goes; default a folder under the Hugging Face cache, named by
            what determines its content.
        show_progress: whether to draw a progress bar.
        needs_division: whether there must be both training and validation documents.

    Raises:
        InputError: the text or the tokenizer cannot be used.
    """
    if text.language is not None:
        check_language(text.language)
    name = text.dataset_name
    folder = None
    if name is not None:
        folder = Path(name) if (Path(name) / MANIFEST).is_file() else download(name)
    if folder is not None:
        corpus = PreparedCorpus.load(folder)
        _check_tokenizer(corpus, tokenizer, name)
    else:
        corpus = _prepare(text, tokenizer, seed, output_dir, show_progress)
    if needs_division and not (len(corpus.train_documents) and len(corpus.validation_documents)):
        raise InputError(
            f"{corpus.manifest['source']['description']} holds "
            f"{corpus.manifest['counts']['documents']} document, but training and evaluation need "
            "at least one each",
            advice="separate documents by blank lines (`document_boundary`), or give more text "
            "with `data_files`",
        )
    return corpus


def _check_tokenizer(
    corpus: PreparedCorpus, tokenizer: PreTrainedTokenizerFast, name: str | None
) -> None:
    """Raise `InputError` if the corpus was prepared with another tokenizer."""
    prepared_with = corpus.manifest["tokenizer"]
    if prepared_with["hash"] != tokenizer_hash(tokenizer):
        raise InputError(
            f"the corpus in {name} was prepared with the tokenizer {prepared_with['name']!r}, not "
            f"with {tokenizer.name_or_path!r}",
            advice="pass that one as `tokenizer_name` or prepare the corpus again",
        )


def _prepare(
    text: TextSource,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    output_dir: Path | None,
    show_progress: bool,
) -> PreparedCorpus:
    if text.preprocessing_num_workers:
        # The pool of the tokenizers library reads it when it first runs, and has no other setting.
        os.environ["RAYON_NUM_THREADS"] = str(text.preprocessing_num_workers)
    source = open_documents(
        dataset_name=text.dataset_name,
        dataset_config_name=text.dataset_config_name,
        dataset_split=text.dataset_split,
        data_files=text.data_files,
        text_column=text.text_column,
        document_boundary=text.document_boundary,
        streaming=text.streaming,
    )
    language, validation_share = text.language, text.validation_share
    if output_dir is None:
        key = corpus_key(
            source, tokenizer, language=language, validation_share=validation_share, seed=seed
        )
        output_dir = Path(HF_HOME) / "bert_pretrain" / "prepared" / key[:20]
    return prepare_corpus(
        source,
        tokenizer,
        output_dir=output_dir,
        language=language,
        validation_share=validation_share,
        seed=seed,
        show_progress=show_progress,
    )


def data_card(corpus: PreparedCorpus, plan: EpochPlan, *, max_seq_length: int) -> str:
    """Describe a corpus and the rows made of it, as text.

    Args:
        corpus: the prepared corpus.
        plan: a plan of its training documents.
        max_seq_length: tokens per row.
    """
    manifest = corpus.manifest
    counts = manifest["counts"]
    is_pair = plan.b_length > 0
    num_special = np.where(is_pair, 3, 2)
    fill = (plan.a_length + plan.b_length + num_special).mean() / max_seq_length
    skipped = ", ".join(f"{count:,} {reason}" for reason, count in manifest["skipped"].items())
    lines = [
        f"corpus           {manifest['source']['description']}",
        f"documents        {counts['documents']:,} ({len(corpus.train_documents):,} training, "
        f"{len(corpus.validation_documents):,} held out); skipped: {skipped or 'none'}",
        f"sentences        {counts['sentences']:,}, mean "
        f"{manifest['tokens_per_sentence']:.1f} tokens",
        f"tokens           {counts['tokens']:,}, mean {manifest['tokens_per_document']:,.0f} a "
        f"document, unknown {100 * manifest['unknown_rate']:.3f} %",
        f"rows             {len(plan):,} an epoch of up to {max_seq_length} tokens, fill "
        f"{100 * fill:.1f} %",
    ]
    if is_pair.any():
        random_share = float((plan.next_sentence_label == IS_RANDOM).mean())
        lines[-1] += (
            f", random next {100 * random_share:.1f} %, left out without partner "
            f"{plan.num_unpaired:,}"
        )
    return "\n".join(lines)
