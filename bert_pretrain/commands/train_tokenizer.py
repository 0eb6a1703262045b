"""`bert-pretrain train-tokenizer`, also `tokenizer/train_tokenizer.py`: text to a tokenizer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from tqdm.auto import tqdm
from transformers import HfArgumentParser

from bert_pretrain.commands.running import reporting_input_errors
from bert_pretrain.config.flags import (
    AUTO,
    TOKENS,
    CountOrAuto,
    Range,
    at_least,
    check_source,
    flag,
    flags,
    parse_flags,
    pick,
)
from bert_pretrain.data.atomic import atomic_folder, check_creatable
from bert_pretrain.errors import InputError, spell
from bert_pretrain.publishing.tokenizer_files import save_tokenizer
from bert_pretrain.text.documents import TextSource, open_documents
from bert_pretrain.text.tokenizer_training import (
    ALPHABET_COVERAGE,
    MAX_UNKNOWN_SHARE,
    train_wordpiece,
)

_CHOICES = {"auto": None, "on": True, "off": False}


@dataclass
class TokenizerArguments:
    """The text, and the tokenizer to make of it."""

    _argument_group_name: ClassVar[str] = "tokenizer"
    output_dir: str = flag(
        "tokenizer/own", "Folder to write; must be new, or a tokenizer with --overwrite."
    )
    vocab_size: int = flag(30522, "Pieces with the five special tokens.", Range(200, 10**7))
    lowercase: bool = flag(True, "Fold case (uncased).")
    strip_accents: Literal["auto", "on", "off"] = flag(
        "auto",
        "Take marks off letters, also the vowels and tones that are marks in Hindi, Thai or "
        "Vietnamese. auto = with --lowercase, where the text has hardly a mark and no letters but "
        "Latin, Greek and Cyrillic.",
    )
    split_cjk: bool = flag(True, "Make every Chinese character, in Japanese too, its own word.")
    alphabet_coverage: float = flag(
        ALPHABET_COVERAGE,
        "Share of the text's characters to be spelt, by the fewest different ones; these take "
        "three quarters of --vocab_size at most.",
        Range(0, 1, low_included=False),
    )
    max_input_chars_per_word: CountOrAuto = flag(
        CountOrAuto("auto"),
        "Longer words are [UNK]; cutting one takes time by the cube of its length. auto = what "
        "99.9 %% of the text's characters need, from 100 to 1000.",
        Range(1, 10**5, or_auto=True),
    )
    max_unknown_share: float = flag(
        MAX_UNKNOWN_SHARE,
        "Share of the tokens of held-out text that may be [UNK], and of its characters that may "
        "be lost to them; more is an error.",
        Range(0, 1),
    )
    min_frequency: int = flag(2, "Occurrences that a merged pair needs.", at_least(1))
    model_max_length: int = flag(512, "Longest row of the model in tokens.", TOKENS)
    dataset_name: str | None = flag(None, "'docs' (default), a folder or a Hub id.")
    dataset_config_name: str | None = flag(None, "Configuration of the Hub data set.")
    dataset_split: str = flag("train", "Split of the data set or folder to read.")
    data_files: list[str] | None = flags(
        "Own text: .txt, .jsonl, .json, .csv, .tsv, .parquet, also .gz, .bz2, .xz or .zst of each; "
        "globs and folders allowed."
    )
    text_column: str = flag("text", "Column that holds the text; a.b = column b within a.")
    document_boundary: Literal["blank_line", "line", "file"] = flag(
        "blank_line", "What ends a document in .txt."
    )
    newline: Literal["auto", "space", "sentence", "paragraph"] = flag(
        "auto",
        "What a newline in a document is: where a line was wrapped, or the end of a sentence or of "
        "a paragraph; auto = what the first part of the text looks like.",
    )
    tsv_quotes: Literal["none", "minimal"] = flag(
        "none", "Quotes of a .tsv are letters, or surround cells that need them."
    )
    streaming: bool = flag(False, "Read a Hub data set without downloading it first.")
    overwrite: bool = flag(False, "Replace the tokenizer in --output_dir.")
    debug: bool = flag(False, "Show the traceback of an input error.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train a tokenizer as the command line says; returns the exit status."""
    # tokenizer/train_tokenizer.py gives no arguments, `bert-pretrain train-tokenizer` does.
    prog = "train_tokenizer.py" if arguments is None else "bert-pretrain train-tokenizer"
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with reporting_input_errors(debug="--debug" in arguments):
        parser = HfArgumentParser(
            TokenizerArguments,
            prog=prog,
            description="Train a WordPiece tokenizer (BERT's normaliser) that AutoTokenizer loads.",
            allow_abbrev=False,
        )
        (options,) = parse_flags(parser, arguments)
        check_source(options)
        train(options)
    return 0


def train(options: TokenizerArguments) -> None:
    """Train and write the tokenizer.

    Raises:
        InputError: the target is in use, the text cannot be used, or too much of it is unknown.
    """
    output_dir = Path(options.output_dir)
    check_creatable(output_dir, parameter="output_dir")
    is_empty_folder = output_dir.is_dir() and not any(output_dir.iterdir())
    if output_dir.exists() and not is_empty_folder:
        if not (output_dir / "tokenizer.json").is_file():
            problem, advice = "something other than a tokenizer", "pass another `output_dir`"
            raise InputError(f"{output_dir} holds {problem}", advice=advice)
        if not options.overwrite:
            advice = "pass another `output_dir`, or `overwrite`"
            raise InputError(f"{output_dir} holds a tokenizer", advice=advice)
    source = open_documents(pick(TextSource, options))
    longest = options.max_input_chars_per_word
    tokenizer = train_wordpiece(
        tqdm(source, desc="reading", unit=" documents"),
        vocab_size=options.vocab_size,
        lowercase=options.lowercase,
        strip_accents=_CHOICES[options.strip_accents],
        split_cjk=options.split_cjk,
        alphabet_coverage=options.alphabet_coverage,
        max_input_chars_per_word=None if longest == AUTO else longest,
        min_frequency=options.min_frequency,
        model_max_length=options.model_max_length,
        max_unknown_share=options.max_unknown_share,
        report=lambda line: sys.stdout.write(f"{line}\n"),
    )
    with atomic_folder(output_dir) as aside:
        save_tokenizer(tokenizer, aside)
    sys.stdout.write(f"{len(tokenizer):,} pieces from {source.description} in {output_dir}\n")
    sys.stdout.writelines(f"{spell(note)}\n" for note in source.notes)
