"""`bert-pretrain prepare`: raw text to a prepared corpus, off the processes of a distributed run.

Training prepares in the same way when it is given raw text.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from transformers import HfArgumentParser, PreTrainedTokenizerFast

from bert_pretrain.commands.running import reporting_input_errors
from bert_pretrain.config.arguments import DataArguments, TextArguments
from bert_pretrain.config.combinations import check_text_rows
from bert_pretrain.config.flags import SEEDS, check_source, flag, given_flags, parse_flags, pick
from bert_pretrain.errors import spell
from bert_pretrain.publishing.hub import download_corpus
from bert_pretrain.text.blocks import evaluation_rows, training_blocks
from bert_pretrain.text.documents import TextSource
from bert_pretrain.text.layout import read_layouts
from bert_pretrain.text.opening import corpus_warnings, data_card, open_corpus
from bert_pretrain.text.pairs import PairMode
from bert_pretrain.text.prepared import PreparedCorpus
from bert_pretrain.text.tokenizers import load_tokenizer


@dataclass
class PrepareArguments:
    """Where the prepared corpus goes."""

    _argument_group_name: ClassVar[str] = "prepare"
    output_dir: str = flag(MISSING, "Folder to write; must be new, or a prepared corpus.")
    objective: Literal["mlm_nsp", "mlm"] = flag(
        "mlm_nsp",
        "What the corpus is for: whether its documents allow that is checked, and the data card "
        "describes the rows. The corpus itself is the same.",
    )
    seed: int = flag(42, "Seed of the choice of held-out documents.", SEEDS)
    debug: bool = flag(False, "Show the traceback of an input error.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare a corpus and print its data card."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with reporting_input_errors(debug="--debug" in arguments):
        parser = HfArgumentParser(
            (PrepareArguments, DataArguments, TextArguments),
            prog="bert-pretrain prepare",
            description="Split, tokenise and store text once, for any number of pretraining runs "
            "(pass --dataset_name OUTPUT_DIR to them).",
            allow_abbrev=False,
        )
        target, data, text = parse_flags(parser, arguments)
        check_source(data)
        check_text_rows(given_flags(arguments), target.objective, text)
        tokenizer = load_tokenizer(text.tokenizer_name)
        corpus = open_corpus(
            pick(TextSource, data, text),
            tokenizer,
            seed=target.seed,
            download=download_corpus,
            output_dir=Path(target.output_dir),
        )
        card = _describe(corpus, tokenizer, target, text)
        warnings = corpus_warnings(corpus, text.masking)
        sys.stdout.write(spell(card) + "\n")
        sys.stdout.writelines(f"WARNING: {spell(warning)}\n" for warning in warnings)
    return 0


def _describe(
    corpus: PreparedCorpus,
    tokenizer: PreTrainedTokenizerFast,
    target: PrepareArguments,
    text: TextArguments,
) -> str:
    """Return the data card, with the rows of the longest phase.

    Raises:
        InputError: documents of either split do not allow the objective.
    """
    pair_mode: PairMode = text.pair_mode if target.objective == "mlm_nsp" else "none"
    rows: dict[str, Any] = {
        "max_seq_length": int(text.max_seq_length),
        "pair_mode": pair_mode,
        "seed": target.seed,
        "same_document_partners": text.same_document_partners,
        "num_special_tokens": read_layouts(tokenizer).num_special_tokens,
    }
    blocks = training_blocks(corpus, short_seq_prob=text.short_seq_prob, **rows)
    plan = blocks.planner(0, 0)()
    evaluation_rows(corpus.store, corpus.validation_documents, max_rows=1, **rows)  # or refusal
    return data_card(corpus, (plan, blocks.num_blocks), pair_mode=pair_mode)
