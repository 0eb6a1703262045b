"""From a named text to a prepared corpus, and what to say of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from bert_pretrain.errors import InputError
from bert_pretrain.text.documents import DocumentSource, TextSource, open_documents
from bert_pretrain.text.masking import MaskingUnit
from bert_pretrain.text.newlines import NewlineRule
from bert_pretrain.text.pairs import EpochPlan, PairMode
from bert_pretrain.text.preparation import prepare_corpus
from bert_pretrain.text.prepared import PreparedCorpus, is_prepared
from bert_pretrain.text.row_card import describe_rows
from bert_pretrain.text.sentences import sentence_rules, standard_language
from bert_pretrain.text.tokenizers import tokenizer_hash
from bert_pretrain.text.words import check_unit

# What says how raw text is read and divided, which a prepared corpus is already.
_OF_RAW_TEXT = (
    "validation_files",
    "validation_split",
    "text_column",
    "document_boundary",
    "newline",
    "tsv_quotes",
    "streaming",
    "validation_share",
)
# Shares of unknown tokens: [UNK] is masked and found again as any other token is, so that a run on
# text of another script looks excellent.
_MUCH_UNKNOWN, _MOST_UNKNOWN = 0.01, 0.3


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
    if there is none. With `needs_division` there must be training and validation documents; without
    it none is held out of what is prepared. For the other arguments see `prepare_corpus`.

    Raises:
        InputError: the text or the tokenizer cannot be used.
    """
    language = None if text.language is None else standard_language(text.language)
    folder = find_prepared(text, download)
    if folder is not None:
        corpus = PreparedCorpus.load(folder)
        _refuse_other_tokenizer(text, tokenizer, corpus.manifest)
        _refuse_other_reading(text, language, corpus.manifest)
        if output_dir is not None:
            raise InputError(
                f"{text.dataset_name} is a prepared corpus already: nothing is to be prepared",
                advice="pass it to training as `dataset_name`",
            )
    else:
        if text.preprocessing_num_workers:
            # The pool of the tokenizers library reads it when it first runs; it has no setting.
            os.environ["RAYON_NUM_THREADS"] = str(text.preprocessing_num_workers)
        documents = open_documents(text)
        rules = documents.newline_rules
        corpus = prepare_corpus(
            documents,
            tokenizer,
            output_dir=output_dir,
            language=language,
            validation_share=text.validation_share if needs_division else 0.0,
            held_out=open_held_out(text, known_rules=rules) if needs_division else None,
            seed=seed,
            show_progress=show_progress,
        )
    if needs_division and not (len(corpus.train_documents) and len(corpus.validation_documents)):
        num_documents, skipped = corpus.store.num_documents, _skipped(corpus)
        raise InputError(
            f"{corpus.manifest['source']['description']} holds {num_documents:,} "
            f"document{'s' * (num_documents > 1)}{f' (skipped: {skipped})' if skipped else ''}, "
            f"{len(corpus.train_documents):,} to train on and "
            f"{len(corpus.validation_documents):,} held out, but both need at least one",
            advice="give more text with `data_files`; in a .txt blank lines separate documents, or "
            "every line is one (`document_boundary` line)",
        )
    return corpus


def find_prepared(text: TextSource, download: Callable[[str], Path | None]) -> Path | None:
    """Return the folder of the prepared corpus that a text names; None if it names raw text.

    For `download` see `open_corpus`.

    Raises:
        InputError: the corpus is on the Hub and cannot be fetched.
    """
    if text.dataset_name is None:
        return None
    folder = Path(text.dataset_name)
    return folder if is_prepared(folder) else download(text.dataset_name)


def open_held_out(
    text: TextSource, *, known_rules: Mapping[str, NewlineRule] | None = None
) -> DocumentSource | None:
    """Find the documents to hold out; None = a share of the others.

    For `known_rules` see `open_documents`.

    Raises:
        InputError: they are named twice or not at all, or as `open_documents`.
    """
    files, split = text.validation_files, text.validation_split
    if files and split:
        raise InputError(
            "`validation_files` and `validation_split` both name what is held out",
            advice="pass one",
        )
    if files:
        held_out = replace(text, dataset_name=None, data_files=files)
        names = {"data_files": "validation_files"}
    elif split:
        if text.data_files or text.dataset_name in (None, "docs"):
            raise InputError(
                f"`validation_split` is {split!r} but the text is no data set with splits",
                advice="pass a data set as `dataset_name`, or files as `validation_files`",
            )
        if split == text.dataset_split:
            raise InputError(
                f"`validation_split` and `dataset_split` are both {split!r}",
                advice="hold out another split, or a share of this one (`validation_share`)",
            )
        held_out, names = replace(text, dataset_split=split), {"dataset_split": "validation_split"}
    else:
        return None
    with _naming(names):
        source = open_documents(held_out, known_rules=known_rules)
    return _HeldOutSource(**vars(source), names=names)


@dataclass
class _HeldOutSource(DocumentSource):
    """A source whose errors name the parameters of what is held out."""

    names: dict[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[str]:
        with _naming(self.names):
            yield from super().__iter__()


def _refuse_other_reading(text: TextSource, language: str | None, manifest: dict[str, Any]) -> None:
    """Raise `InputError` if a prepared corpus is to be read or divided in another way."""
    for name in _OF_RAW_TEXT:
        # What was asked for in the preparation may be asked for again.
        if getattr(text, name) not in (getattr(TextSource, name), manifest.get(name)):
            raise InputError(
                f"`{name}` means nothing to {text.dataset_name}, a prepared corpus, which is read "
                "and divided already",
                advice=f"leave it out, or pass `{name}` to bert-pretrain prepare",
            )
    rules = manifest["sentence_rules"]
    if language is not None and sentence_rules(language) != rules:
        raise InputError(
            f"`language` is {text.language}, but the sentences of {text.dataset_name}, a prepared "
            f"corpus, are split by the rules of {rules!r}",
            advice="leave it out, or pass it to bert-pretrain prepare",
        )


def _refuse_other_tokenizer(
    text: TextSource, tokenizer: PreTrainedTokenizerFast, manifest: dict[str, Any]
) -> None:
    prepared_with = manifest["tokenizer"]
    if prepared_with["hash"] != tokenizer_hash(tokenizer):
        raise InputError(
            f"the corpus in {text.dataset_name} was prepared with the tokenizer "
            f"{prepared_with['name']!r}, not with {tokenizer.name_or_path!r}",
            advice="pass that one as `tokenizer_name` or prepare the corpus again",
        )


def refuse_unknown(corpus: PreparedCorpus) -> None:
    """Raise `InputError` if the tokenizer does not know the text that is to be learnt from."""
    manifest = corpus.manifest
    if manifest["unknown_rate"] > _MOST_UNKNOWN:
        raise InputError(
            f"{manifest['unknown_rate']:.0%} of the tokens of {manifest['source']['description']} "
            f"are unknown to the tokenizer {manifest['tokenizer']['name']!r}",
            advice="train one on this text (bert-pretrain train-tokenizer) and pass it as "
            "`tokenizer_name`",
        )


def corpus_warnings(corpus: PreparedCorpus, unit: MaskingUnit) -> list[str]:
    """Return what is doubtful about a corpus, and about masking such units of it.

    Raises:
        InputError: most of the text has no words, which the unit needs.
    """
    warnings = check_unit(corpus.manifest["words"], unit)
    if (rate := corpus.manifest["unknown_rate"]) > _MUCH_UNKNOWN:
        warnings.append(
            f"{rate:.1%} of the tokens are unknown to the tokenizer, and masked ones are easily "
            "guessed: train one on this text (bert-pretrain train-tokenizer)"
        )
    return warnings


@contextmanager
def _naming(names: dict[str, str]) -> Iterator[None]:
    """Let an `InputError` name other parameters than those it knows."""
    try:
        yield
    except InputError as error:
        problem, advice = error.problem, error.advice
        for name, other in names.items():
            problem, advice = (
                part.replace(f"`{name}`", f"`{other}`") for part in (problem, advice)
            )
        raise InputError(problem, advice=advice) from error


def _skipped(corpus: PreparedCorpus) -> str:
    """Return how many documents were left out, and why."""
    return ", ".join(f"{count:,} {why}" for why, count in corpus.manifest["skipped"].items())


def data_card(
    corpus: PreparedCorpus, *rows: tuple[EpochPlan, int], pair_mode: PairMode = "exact"
) -> str:
    """Describe a corpus, and the rows of an epoch of its training documents, as text.

    `rows` are, for each phase of a run, the plan of one block, drawn as `pair_mode` says, and the
    number of blocks, which are alike.
    """
    manifest = corpus.manifest
    counts = manifest["counts"]
    num_held_out = counts["validation_tokens"]
    lines = [
        f"corpus           {manifest['source']['description']}",
        f"documents        {counts['documents']:,} ({len(corpus.train_documents):,} training, "
        f"{len(corpus.validation_documents):,} held out); skipped: {_skipped(corpus) or 'none'}",
        f"sentences        {counts['sentences']:,}, mean "
        f"{manifest['tokens_per_sentence']:.1f} tokens",
        f"tokens           {counts['tokens']:,} ({counts['tokens'] - num_held_out:,} training, "
        f"{num_held_out:,} held out: {100 * num_held_out / counts['tokens']:.1f} %), mean "
        f"{manifest['tokens_per_document']:,.0f} a document, unknown "
        f"{100 * manifest['unknown_rate']:.3f} %",
        f"words            {_describe_words(manifest['words'])}",
        *_describe_division(manifest),
        *(line for phase in rows for line in describe_rows(*phase, pair_mode)),
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


def _describe_division(manifest: dict[str, Any]) -> Iterator[str]:
    """Yield the lines that say what is held out, where that is not whole documents of the text."""
    if other := manifest["source"].get("held_out"):
        yield f"held out         {other}"
    if num_cut := manifest["counts"]["divided_documents"]:
        yield (
            f"held out         also the first or last sentences of {num_cut:,} long documents, "
            "which count as documents here"
        )
    if named := manifest["held_out_twice"]:
        yield (
            f"WARNING: {manifest['skipped']['held out as well']:,} training documents are held out "
            "as well and left out: " + ", ".join(f"'{beginning} ...'" for beginning in named)
        )
