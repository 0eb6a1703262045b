"""From a named text to a prepared corpus, and what to say of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from bert_pretrain.errors import InputError
from bert_pretrain.text.documents import TextSource, open_documents
from bert_pretrain.text.pairs import IS_RANDOM, EpochPlan, PairMode
from bert_pretrain.text.preparation import prepare_corpus
from bert_pretrain.text.prepared import MANIFEST, PreparedCorpus
from bert_pretrain.text.sentences import standard_language
from bert_pretrain.text.tokenizers import tokenizer_hash


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
    """Return the prepared corpus of a text; if several processes ask for it, one prepares it.

    `download` fetches the folder of a prepared corpus of that name from the Hub, and returns None
    if there is none. With `needs_division` there must be training and validation documents. For
    the other arguments see `prepare_corpus`.

    Raises:
        InputError: the text or the tokenizer cannot be used.
    """
    language = None if text.language is None else standard_language(text.language)
    name = text.dataset_name
    folder = None
    if name is not None:
        folder = Path(name) if (Path(name) / MANIFEST).is_file() else download(name)
    if folder is not None:
        corpus = PreparedCorpus.load(folder)
        prepared_with = corpus.manifest["tokenizer"]
        if prepared_with["hash"] != tokenizer_hash(tokenizer):
            raise InputError(
                f"the corpus in {name} was prepared with the tokenizer {prepared_with['name']!r}, "
                f"not with {tokenizer.name_or_path!r}",
                advice="pass that one as `tokenizer_name` or prepare the corpus again",
            )
    else:
        if text.preprocessing_num_workers:
            # The pool of the tokenizers library reads it when it first runs; it has no setting.
            os.environ["RAYON_NUM_THREADS"] = str(text.preprocessing_num_workers)
        corpus = prepare_corpus(
            open_documents(text),
            tokenizer,
            output_dir=output_dir,
            language=language,
            validation_share=text.validation_share,
            seed=seed,
            show_progress=show_progress,
        )
    if needs_division and not (len(corpus.train_documents) and len(corpus.validation_documents)):
        raise InputError(
            f"{corpus.manifest['source']['description']} holds "
            f"{corpus.manifest['counts']['documents']} document, but training and evaluation need "
            "at least one each",
            advice="separate documents by blank lines, let every line be one (`document_boundary` "
            "line), or give more text with `data_files`",
        )
    return corpus


def data_card(
    corpus: PreparedCorpus, *rows: tuple[EpochPlan, int], pair_mode: PairMode = "exact"
) -> str:
    """Describe a corpus, and the rows of an epoch of its training documents, as text.

    `rows` are, for each phase of a run, the plan of one block, drawn as `pair_mode` says, and the
    number of blocks, which are alike.
    """
    manifest = corpus.manifest
    counts = manifest["counts"]
    skipped = ", ".join(f"{count:,} {reason}" for reason, count in manifest["skipped"].items())
    lines = [
        f"corpus           {manifest['source']['description']}",
        f"documents        {counts['documents']:,} ({len(corpus.train_documents):,} training, "
        f"{len(corpus.validation_documents):,} held out); skipped: {skipped or 'none'}",
        f"sentences        {counts['sentences']:,}, mean "
        f"{manifest['tokens_per_sentence']:.1f} tokens",
        f"tokens           {counts['tokens']:,}, mean {manifest['tokens_per_document']:,.0f} a "
        f"document, unknown {100 * manifest['unknown_rate']:.3f} %",
        f"words            {_describe_words(manifest['words'])}",
        *(f"rows             {_describe_rows(*phase, pair_mode)}" for phase in rows),
        *(f"note             {note}" for note in manifest["notes"]),
    ]
    return "\n".join(lines)


def _describe_words(words: dict[str, Any]) -> str:
    described = (
        f"{words['number']:,}, mean {words['per_sentence']:.1f} a sentence, "
        f"{words['tokens_per_word']:.2f} tokens a word"
    )
    if words["segmenter"] is None:
        return described
    share = 100 * words["share_without_spaces"]
    how = f"by {words['segmenter']}" if words["has_dictionary"] else "into characters"
    return f"{described}; {share:.1f} % of the characters in scripts without spaces, cut {how}"


def _describe_rows(plan: EpochPlan, num_blocks: int, pair_mode: PairMode) -> str:
    is_pair = plan.b_length > 0
    fill = (plan.a_length + plan.b_length + np.where(is_pair, 3, 2)).mean() / plan.row_length
    about = "about " if num_blocks > 1 else ""
    described = (
        f"{about}{num_blocks * len(plan):,} an epoch of up to {plan.row_length} tokens, "
        f"fill {100 * fill:.1f} %"
    )
    if not is_pair.any():
        return described
    random_share = 100 * float((plan.next_sentence_label == IS_RANDOM).mean())
    label = "swapped" if pair_mode == "sop" else "random next"
    left_out = f"left out without partner {about}{num_blocks * plan.num_unpaired:,}"
    return f"{described}, {label} {random_share:.1f} %, {left_out}"
