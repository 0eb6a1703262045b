"""Train a WordPiece tokenizer on text in any script: the same text gives the same tokenizer."""

from __future__ import annotations

import math
import string
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import WordPieceTrainer
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from bert_pretrain.errors import InputError
from bert_pretrain.text.scripts import describe_letters
from bert_pretrain.text.unknown import UnknownCount, count_unknown
from bert_pretrain.text.word_counts import PRE_TOKENIZER, count_characters, count_words, cut_words

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]  # ids 0 to 4
ALPHABET_COVERAGE = 0.9999
MAX_UNKNOWN_SHARE = 0.005
_UNKNOWN, _CONTINUES = "[UNK]", "##"
_QUOTES_AND_DASHES = "\u2013\u2014\u2018\u2019\u201c\u201d"
_COMMON_CHARACTERS = string.digits + string.ascii_letters + string.punctuation + _QUOTES_AND_DASHES
_MOST_OF_VOCABULARY = 0.75  # that the alphabet may take
# Cutting a word takes time in proportion to the cube of its length: about 0.4 ms for 100
# characters, 40 ms for 1,000, 200 ms for 2,000 of random letters (tokenizers 0.23).
_WORD_LENGTHS = 100, 1000  # the limit of BERT, and the largest that is chosen here
_LONG_WORDS_SHARE = 0.001  # of the characters, that may lie in words over the limit
_FEWEST_HELD_OUT = 1_000  # words; a share of fewer says little
_REPEATS_AT_ONCE = 10_000


class Alphabet(NamedTuple):
    """The characters that a vocabulary spells words with.

    Attributes:
        pieces: the characters, and those that occur within words with ## before them, in an order
            that depends on nothing else.
        characters: those among them.
        coverage: share of the text's characters that are among them.
    """

    pieces: list[str]
    characters: frozenset[str]
    coverage: float


def train_wordpiece(
    texts: Iterable[str],
    *,
    vocab_size: int,
    lowercase: bool = True,
    strip_accents: bool | None = None,
    split_cjk: bool = True,
    alphabet_coverage: float = ALPHABET_COVERAGE,
    max_input_chars_per_word: int | None = None,
    min_frequency: int = 2,
    model_max_length: int = 512,
    max_unknown_share: float = MAX_UNKNOWN_SHARE,
    show_progress: bool = True,
    report: Callable[[str], object] = lambda line: None,
) -> PreTrainedTokenizerFast:
    """Train a WordPiece vocabulary with BERT's normaliser and pre-tokeniser.

    What stands in the text is data, also `[MASK]`. One passage in fifty is not trained on; it tells
    how much of other text will be unknown. A text of less than some 50,000 words is trained on as
    a whole, and tells it itself.

    Args:
        texts: documents, read once, in order; only word counts are held in memory.
        vocab_size: pieces including the special tokens; a small corpus may fill fewer.
        lowercase: whether to fold case.
        strip_accents: whether to take marks off letters, all that Unicode calls non-spacing: vowels
            of Hindi and tones of Thai too. None = as the text is: if case is folded and the text
            has hardly a mark and no letters but Latin, Greek and Cyrillic.
        split_cjk: whether each Chinese character (also in Japanese) is a word of its own.
        alphabet_coverage: share of the text's characters that the vocabulary must be able to spell,
            in (0, 1], by as few different ones as can be; these take three quarters of
            `vocab_size` at most.
        max_input_chars_per_word: characters of the longest word that is not unknown as a whole.
            None = as the text is: the least from 100 to 1,000 that keeps 99.9 % of its characters.
        min_frequency: occurrences that a merged pair needs.
        model_max_length: longest row the model will take, in tokens.
        max_unknown_share: share of the tokens, and of the characters, of held-out text that may be
            unknown, in [0, 1].
        show_progress: whether to draw a progress bar.
        report: called with a line on what the text is and what was chosen, before the training, and
            with one on what is unknown, after it.

    Raises:
        InputError: there are no words, or too much of the text is unknown.
    """
    written, held_out = _words_as_written(texts, split_cjk)
    letters = describe_letters(written)
    if strip_accents is None:
        strip_accents = lowercase and letters.has_mere_accents
    normalizer = _normalizer(lowercase=lowercase, strip_accents=strip_accents, split_cjk=split_cjk)
    words = cut_words(written, normalizer)
    del written  # half of the memory, of a large text
    if not words:
        raise InputError(
            "the text has no words to train a tokenizer on", advice="pass other `data_files`"
        )
    alphabet = _choose_alphabet(words, normalizer, alphabet_coverage, vocab_size)
    if max_input_chars_per_word is None:
        max_input_chars_per_word = _word_length(words)
    report(
        f"text: {letters}; so: lowercase {_on(lowercase)}, strip_accents {_on(strip_accents)}, "
        f"split_cjk {_on(split_cjk)}, an alphabet of {len(alphabet.characters):,} characters "
        f"({100 * alphabet.coverage:.3f} % of the text), words of up to "
        f"{max_input_chars_per_word} characters"
    )
    spellable = {
        word: count
        for word, count in words.items()
        if len(word) <= max_input_chars_per_word and alphabet.characters.issuperset(word)
    }
    vocabulary = _learn_pieces(
        spellable, alphabet, vocab_size, min_frequency=min_frequency, show_progress=show_progress
    )
    backend = _bert_backend(vocabulary, normalizer, max_input_chars_per_word)
    seen = words if held_out is None else cut_words(held_out, normalizer)
    unknown = count_unknown(backend, seen, _UNKNOWN)
    report(_describe_unknown(unknown, is_held_out=held_out is not None))
    _check_unknown(unknown, max_unknown_share)
    if max_input_chars_per_word != _WORD_LENGTHS[0]:
        return _as_it_is(backend, model_max_length)
    tokenizer = BertTokenizerFast(
        tokenizer_object=backend,
        vocab=vocabulary,  # without it transformers 5 makes a tokenizer of five tokens
        do_lower_case=lowercase,
        strip_accents=strip_accents,
        tokenize_chinese_chars=split_cjk,
        model_max_length=model_max_length,
    )
    assert tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS) == list(range(len(SPECIAL_TOKENS)))
    return tokenizer


def _normalizer(
    *, lowercase: bool, strip_accents: bool, split_cjk: bool
) -> normalizers.BertNormalizer:
    return normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=split_cjk,
        strip_accents=strip_accents,
        lowercase=lowercase,
    )


def _words_as_written(
    texts: Iterable[str], split_cjk: bool
) -> tuple[Counter[str], Counter[str] | None]:
    """Return counted words with their case and marks; no held-out ones if they are too few."""
    as_written = _normalizer(lowercase=False, strip_accents=False, split_cjk=split_cjk)
    training, held_out = count_words(texts, as_written)
    if held_out.total() < _FEWEST_HELD_OUT or held_out.total() > training.total():
        return training + held_out, None
    return training, held_out


def _choose_alphabet(
    words: Mapping[str, int],
    normalizer: normalizers.Normalizer,
    coverage: float,
    vocab_size: int,
) -> Alphabet:
    """Return the fewest characters that cover a share of a text, with those of a keyboard.

    The latter must not become [UNK] where the text lacks them; rare characters, such as a quotation
    in a foreign script, must not fill the vocabulary.
    """
    counts = count_characters(words)
    needed = coverage * counts.total()
    characters = set(normalizer.normalize_str(" ".join(_COMMON_CHARACTERS)).split())
    pieces = _spellings(characters, normalizer)
    covered = 0
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if covered >= needed:
            break
        covered += count
        if character not in characters:
            spelt = _spellings({character}, normalizer)
            if len(pieces) + len(spelt) > _MOST_OF_VOCABULARY * vocab_size:
                break
            characters.add(character)
            pieces |= spelt
    covered = sum(counts[character] for character in characters)
    ordered = sorted(pieces, key=lambda piece: (len(piece), piece))  # whole characters first
    return Alphabet(ordered, frozenset(characters), covered / counts.total())


def _spellings(characters: set[str], normalizer: normalizers.Normalizer) -> set[str]:
    """Return the pieces of characters: at the start of a word, and within one if they can be."""
    within = {
        _CONTINUES + character
        for character in characters
        # Punctuation and, if they are split, Chinese characters stand alone.
        if len(PRE_TOKENIZER.pre_tokenize_str(normalizer.normalize_str(f"a{character}a"))) == 1
    }
    return characters | within


def _word_length(words: Mapping[str, int]) -> int:
    """Return the least limit, within bounds, over which words hold few of the characters."""
    shortest, longest = _WORD_LENGTHS
    characters: Counter[int] = Counter()
    for word, count in words.items():
        characters[len(word)] += count * len(word)
    allowed = _LONG_WORDS_SHARE * characters.total()
    for length in sorted(characters, reverse=True):
        allowed -= characters[length]
        if allowed < 0:
            return min(max(length, shortest), longest)
    return shortest


def _learn_pieces(
    words: Mapping[str, int],
    alphabet: Alphabet,
    vocab_size: int,
    *,
    min_frequency: int,
    show_progress: bool,
) -> dict[str, int]:
    """Return the vocabulary, each piece with its id.

    The trainer takes the pair of the lowest ids among equally frequent ones, and numbers the
    letters by a hash table that differs from run to run. As special tokens they get our ids.
    """
    trainer = WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[*SPECIAL_TOKENS, *alphabet.pieces],
        show_progress=show_progress and sys.stdout.isatty(),  # else it prints blank lines
        continuing_subword_prefix=_CONTINUES,
    )
    learner = Tokenizer(models.WordPiece(unk_token=_UNKNOWN))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    learner.train_from_iterator(_written_out(words), trainer)
    return learner.get_vocab()


def _written_out(words: Mapping[str, int]) -> Iterator[str]:
    """Yield every word as often as it occurs; the trainer takes no counts."""
    for word, count in words.items():
        whole, rest = divmod(count, _REPEATS_AT_ONCE)
        for times in (*[_REPEATS_AT_ONCE] * whole, rest):
            yield f"{word} " * times


def _bert_backend(
    vocabulary: dict[str, int], normalizer: normalizers.Normalizer, max_input_chars_per_word: int
) -> Tokenizer:
    model = models.WordPiece(
        vocabulary,
        unk_token=_UNKNOWN,
        max_input_chars_per_word=max_input_chars_per_word,
        continuing_subword_prefix=_CONTINUES,
    )
    backend = Tokenizer(model)
    backend.normalizer = normalizer
    backend.pre_tokenizer = PRE_TOKENIZER
    backend.decoder = decoders.WordPiece(prefix=_CONTINUES)
    backend.add_special_tokens(SPECIAL_TOKENS)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return backend


def _as_it_is(backend: Tokenizer, model_max_length: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer of no model's class.

    That of BERT makes its model anew when transformers 5 loads it, with the limit of 100 characters
    a word.
    """
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=model_max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **{f"{token.strip('[]').lower()}_token": token for token in SPECIAL_TOKENS},
    )


def _describe_unknown(unknown: UnknownCount, *, is_held_out: bool) -> str:
    where = "passages held out" if is_held_out else "the text itself, too short to hold some out"
    return (
        f"unknown: {100 * unknown.token_share:.3f} % of {unknown.tokens:,} tokens are {_UNKNOWN}, "
        f"{100 * unknown.character_share:.3f} % of the characters lost to them (of {where})"
    )


def _check_unknown(unknown: UnknownCount, allowed: float) -> None:
    share = max(unknown.token_share, unknown.character_share)
    if share <= allowed:
        return
    accepted = math.ceil(1000 * share) / 1000
    raise InputError(
        f"{100 * unknown.token_share:.2f} % of the tokens would be {_UNKNOWN}, with "
        f"{100 * unknown.character_share:.2f} % of the characters lost to it, but "
        f"{100 * allowed:g} % is allowed",
        advice="raise `vocab_size`, `alphabet_coverage` or `max_input_chars_per_word`, pass more "
        f"text, or accept it by `max_unknown_share` {accepted:g}",
    )


def _on(value: bool) -> str:
    return "on" if value else "off"
