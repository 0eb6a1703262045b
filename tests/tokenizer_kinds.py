"""Tokenizers of many kinds, each trained on a few sentences, as somebody might bring them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from languages import SAMPLES
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AlbertTokenizer,
    BertTokenizer,
    DebertaV2Tokenizer,
    MPNetTokenizer,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    XLMRobertaTokenizer,
)

BRACKETS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ANGLES = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]
ROLES = ("pad", "unk", "cls", "sep", "mask")
TEXTS = [
    *SAMPLES[0].sentences,
    *SAMPLES[1].sentences,
    "Write [CLS], <s> or </s>: the mask pad.",
] * 9


class Kind(NamedTuple):
    """A tokenizer, the type of a model that it is used with, and what its rows look like.

    `single` and `pair` are written with the names of special tokens, A and B.
    """

    build: Callable[[], PreTrainedTokenizerFast]
    model_type: str
    single: str
    pair: str
    tells_types: bool


def trained(
    model: Any, trainer: Any, pre_tokenizer: Any, normalizer: Any = None, *, special: list[str]
) -> Tokenizer:
    """Return a tokenizer of one kind of model, without a post-processor."""
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.train_from_iterator(TEXTS, trainer(special_tokens=special, show_progress=False))
    return backend


def wordpiece(special: list[str] = BRACKETS) -> Tokenizer:
    """Return BERT's, with a lower-casing normaliser."""
    return trained(
        models.WordPiece(unk_token=special[1]),
        lambda **options: trainers.WordPieceTrainer(vocab_size=300, **options),
        pre_tokenizers.BertPreTokenizer(),
        normalizers.BertNormalizer(lowercase=True),
        special=special,
    )


def byte_level(special: list[str] = ANGLES) -> Tokenizer:
    """Return a byte-level BPE, whose words begin with their space."""
    return trained(
        models.BPE(),
        lambda **options: trainers.BpeTrainer(
            vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **options
        ),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        special=special,
    )


def unigram(special: list[str] = ANGLES) -> Tokenizer:
    """Return a SentencePiece-like one; its special tokens are pieces that match text."""
    return trained(
        models.Unigram(),
        lambda **options: trainers.UnigramTrainer(
            vocab_size=150, unk_token=next(n for n in special if "nk" in n.lower()), **options
        ),
        pre_tokenizers.Metaspace(),
        special=special,
    )


def scores(backend: Tokenizer) -> list[tuple[str, float]]:
    """Return the pieces of a unigram model with their scores, by id."""
    return [(piece, score) for piece, score in json.loads(backend.to_str())["model"]["vocab"]]


def merges(backend: Tokenizer) -> list[tuple[str, str]]:
    """Return the merges of a BPE."""
    return [(first, second) for first, second in json.loads(backend.to_str())["model"]["merges"]]


def plain(backend: Tokenizer, special: list[str], **options: Any) -> PreTrainedTokenizerFast:
    """Return a tokenizer without a class of its own."""
    names = {f"{role}_token": name for role, name in zip(ROLES, special, strict=True)}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names, **options)


def with_template(backend: Tokenizer, single: str, pair: str) -> Tokenizer:
    """Give a tokenizer a post-processor."""
    names = {token.split(":")[0] for token in f"{single} {pair}".split() if token[0] != "$"}
    known = [(name, backend.token_to_id(name)) for name in sorted(names)]
    backend.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=known
    )
    return backend


def _bert() -> PreTrainedTokenizerFast:
    return BertTokenizer(vocab=wordpiece().get_vocab())


def _bert_with_tokens_of_the_user() -> PreTrainedTokenizerFast:
    tokenizer = _bert()
    tokenizer.add_special_tokens({"extra_special_tokens": ["[E1]", "<speaker>"]})
    return tokenizer


def _roberta() -> PreTrainedTokenizerFast:
    backend = byte_level()
    return RobertaTokenizer(vocab=backend.get_vocab(), merges=merges(backend))


def _modernbert() -> PreTrainedTokenizerFast:
    backend = with_template(byte_level(BRACKETS), "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
    names = ["input_ids", "attention_mask"]  # as published: the template tells types, it does not
    return plain(backend, BRACKETS, model_input_names=names)


def _word_level() -> PreTrainedTokenizerFast:
    backend = trained(
        models.WordLevel(unk_token="[UNK]"),
        trainers.WordLevelTrainer,
        pre_tokenizers.WhitespaceSplit(),
        special=BRACKETS,
    )
    return plain(backend, BRACKETS)


def _characters() -> PreTrainedTokenizerFast:
    alphabet = sorted(set("".join(TEXTS)) - {" "})
    vocabulary = {token: i for i, token in enumerate([*BRACKETS, *alphabet])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("."), "isolated")]
    )
    return plain(backend, BRACKETS)


def _t5() -> PreTrainedTokenizerFast:
    return plain(with_template(unigram(), "$A </s>", "$A </s> $B </s>"), ANGLES)


def _xlnet() -> PreTrainedTokenizerFast:
    pair = "$A:0 [SEP]:0 $B:1 [SEP]:1 [CLS]:2"
    return plain(with_template(unigram(BRACKETS), "$A:0 [SEP]:0 [CLS]:2", pair), BRACKETS)


_OF_BERT = ("[CLS] A [SEP]", "[CLS] A [SEP] B [SEP]")
_OF_ROBERTA = ("<s> A </s>", "<s> A </s> </s> B </s>")
KINDS = {
    "BERT": Kind(_bert, "bert", *_OF_BERT, True),
    "BERT in a DistilBERT": Kind(_bert, "distilbert", *_OF_BERT, False),
    "BERT in a model of one type": Kind(_bert, "roberta", *_OF_BERT, False),
    "tokens of the user": Kind(_bert_with_tokens_of_the_user, "electra", *_OF_BERT, True),
    "WordPiece without post-processor": Kind(
        lambda: plain(wordpiece(), BRACKETS), "bert", *_OF_BERT, True
    ),
    "RoBERTa": Kind(_roberta, "roberta", *_OF_ROBERTA, False),
    "RoBERTa in a BERT": Kind(_roberta, "bert", *_OF_ROBERTA, False),
    "byte-level without post-processor": Kind(
        lambda: plain(byte_level(), ANGLES), "roberta", "<s> A </s>", "<s> A </s> B </s>", False
    ),
    "ModernBERT": Kind(_modernbert, "modernbert", *_OF_BERT, False),
    "ALBERT": Kind(
        lambda: AlbertTokenizer(vocab=scores(unigram(["<pad>", "<unk>", *BRACKETS[2:]]))),
        "albert",
        *_OF_BERT,
        True,
    ),
    "DeBERTa": Kind(
        lambda: DebertaV2Tokenizer(vocab=scores(unigram(BRACKETS))), "deberta-v2", *_OF_BERT, False
    ),
    "XLM-RoBERTa": Kind(
        lambda: XLMRobertaTokenizer(
            vocab=scores(unigram(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]))
        ),
        "xlm-roberta",
        *_OF_ROBERTA,
        False,
    ),
    "MPNet": Kind(
        lambda: MPNetTokenizer(vocab=wordpiece(["<pad>", "[UNK]", *ANGLES[2:]]).get_vocab()),
        "mpnet",
        *_OF_ROBERTA,
        False,
    ),
    "T5": Kind(_t5, "bert", "A </s>", "A </s> B </s>", False),
    "XLNet": Kind(_xlnet, "bert", "A [SEP] [CLS]", "A [SEP] B [SEP] [CLS]", False),
    "word-level": Kind(_word_level, "bert", *_OF_BERT, True),
    "characters": Kind(_characters, "bert", *_OF_BERT, True),
}
