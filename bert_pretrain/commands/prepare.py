"""`bert-pretrain prepare`: raw text to a prepared corpus, once, before any training.

Preparation as a command of its own keeps it off the processes of a distributed run. Training calls
the same function when it is given raw text.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from huggingface_hub.constants import HF_HOME
from transformers import HfArgumentParser, PreTrainedTokenizerFast

from bert_pretrain.commands.running import reporting_input_errors
from bert_pretrain.config.arguments import DataArguments, TextArguments
from bert_pretrain.config.checks import check_masking, check_source
from bert_pretrain.config.flags import SEEDS, flag, parse_flags
from bert_pretrain.errors import InputError
from bert_pretrain.publishing.download import download_corpus
from bert_pretrain.text.documents import check_language, open_documents
from bert_pretrain.text.preparation import corpus_key, prepare_corpus
from bert_pretrain.text.prepared import MANIFEST, PreparedCorpus
from bert_pretrain.text.sentence_pairs import EpochPlan, PairMode, plan_epoch
from bert_pretrain.text.tokenizers import load_tokenizer, tokenizer_hash


@dataclass
class PrepareArguments:
    """Where the prepared corpus goes."""

    _argument_group_name: ClassVar[str] = "prepare"

    output_dir: str = flag(MISSING, "Folder to write; must be new, or a prepared corpus.")
    seed: int = flag(42, "Seed of the choice of held-out documents.", allowed=SEEDS)
    debug: bool = flag(False, "Show the traceback of an input error.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare a corpus and print its data card."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    groups = (PrepareArguments, DataArguments, TextArguments)
    with reporting_input_errors(debug="--debug" in arguments):
        parser = HfArgumentParser(
            groups,
            prog="bert-pretrain prepare",
            description="Split, tokenise and store text once, for any number of pretraining runs "
            "(pass --dataset_name OUTPUT_DIR to them).",
            allow_abbrev=False,
        )
        target, data, text = parse_flags(parser, arguments)
        check_source(data)
        check_masking(text)
        tokenizer = load_tokenizer(text.tokenizer_name)
        corpus = open_corpus(
            data, text, tokenizer, seed=target.seed, output_dir=Path(target.output_dir)
        )
        plan = plan_epoch(
            corpus.store,
            corpus.train_documents,
            max_seq_length=text.max_seq_length,
            short_seq_prob=text.short_seq_prob,
            pair_mode=text.pair_mode,
            seed=target.seed,
            epoch=0,
        )
        print(data_card(corpus, plan, max_seq_length=text.max_seq_length))  # noqa: T201
    return 0


def open_corpus(
    data: DataArguments,
    text: TextArguments,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    output_dir: Path | None = None,
    show_progress: bool = True,
    needs_division: bool = True,
) -> PreparedCorpus:
    """Return the prepared corpus that the flags describe, preparing it unless it is there.

    Several processes may call it at once: one prepares, the others wait.

    Args:
        data: the flags that name the text.
        text: the flags that say how it is read.
        tokenizer: the model's.
        seed: of the split into training and validation documents.
        output_dir: where it goes; default a folder under the Hugging Face cache, named by what
            determines its content.
        show_progress: whether to draw a progress bar.
        needs_division: whether there must be both training and validation documents.

    Raises:
        InputError: the text or the tokenizer cannot be used.
    """
    if text.language is not None:
        check_language(text.language)
    folder = _prepared_folder(data.dataset_name)
    if folder is not None:
        corpus = PreparedCorpus.load(folder)
        if corpus.manifest["tokenizer"]["hash"] != tokenizer_hash(tokenizer):
            raise InputError(
                f"the corpus in {data.dataset_name} was prepared with the tokenizer "
                f"{corpus.manifest['tokenizer']['name']!r}, not with "
                f"{text.tokenizer_name or 'the default one'!r}",
                advice="pass that one as `tokenizer_name` or prepare the corpus again",
            )
        return _divided(corpus) if needs_division else corpus
    if text.preprocessing_num_workers:
        # The pool of the tokenizers library reads it when it first runs, and has no other setting.
        os.environ["RAYON_NUM_THREADS"] = str(text.preprocessing_num_workers)
    source = open_documents(
        dataset_name=data.dataset_name or (None if data.data_files else "docs"),
        dataset_config_name=data.dataset_config_name,
        dataset_split=data.dataset_split,
        data_files=data.data_files,
        text_column=text.text_column,
        document_boundary=text.document_boundary,
        streaming=text.streaming,
    )
    if output_dir is None:
        key = corpus_key(
            source,
            tokenizer,
            language=text.language,
            validation_share=data.validation_share,
            seed=seed,
        )
        output_dir = Path(HF_HOME) / "bert_pretrain" / "prepared" / key[:20]
    corpus = prepare_corpus(
        source,
        tokenizer,
        output_dir=output_dir,
        language=text.language,
        validation_share=data.validation_share,
        seed=seed,
        show_progress=show_progress,
    )
    return _divided(corpus) if needs_division else corpus


def _divided(corpus: PreparedCorpus) -> PreparedCorpus:
    """Return the corpus, or raise `InputError` if one document is all there is to train and to evaluate on."""
    if len(corpus.train_documents) and len(corpus.validation_documents):
        return corpus
    raise InputError(
        f"{corpus.manifest['source']['description']} holds "
        f"{corpus.manifest['counts']['documents']} document, but training and evaluation need at "
        "least one each",
        advice="separate documents by blank lines (`document_boundary`), or give more text with "
        "`data_files`",
    )


def _prepared_folder(dataset_name: str | None) -> Path | None:
    """Return where the prepared corpus of that name lies, on disk or fetched from the Hub; None if it is none."""
    if dataset_name is None:
        return None
    folder = Path(dataset_name)
    return folder if (folder / MANIFEST).is_file() else download_corpus(dataset_name)


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
    skipped = (
        ", ".join(f"{count:,} {reason}" for reason, count in manifest["skipped"].items()) or "none"
    )
    lines = [
        f"corpus           {manifest['source']['description']}",
        f"documents        {counts['documents']:,} ({len(corpus.train_documents):,} training, "
        f"{len(corpus.validation_documents):,} held out); skipped: {skipped}",
        f"sentences        {counts['sentences']:,}, mean "
        f"{counts['tokens'] / counts['sentences']:.1f} tokens",
        f"tokens           {counts['tokens']:,}, mean "
        f"{counts['tokens'] / counts['documents']:,.0f} a document, "
        f"unknown {100 * manifest['unknown_rate']:.3f} %",
        f"rows             {len(plan):,} an epoch of up to {max_seq_length} tokens, fill "
        f"{100 * fill:.1f} %",
    ]
    if is_pair.any():
        random_share = float((plan.next_sentence_label == 1).mean())
        lines[-1] += (
            f", random next {100 * random_share:.1f} %, left out without partner "
            f"{plan.num_unpaired:,}"
        )
    return "\n".join(lines)


def pair_mode_for(objective: str, pair_mode: PairMode) -> PairMode:
    """Return how pairs are drawn for an objective: none for masked words alone."""
    return pair_mode if objective == "mlm_nsp" else "none"
