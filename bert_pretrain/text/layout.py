"""Where special tokens stand in a row: where the tokenizer that users will call puts them.

A tokenizer's post-processor enters; the ids and token types around one segment and around two
leave. Rows of training are laid out by them, so that a model meets in use what it was trained on:
BERT's `[CLS] A [SEP] B [SEP]` with types 0 and 1, RoBERTa's `<s> A </s></s> B </s>` without, or
whatever else there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tokenizers import Encoding, Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

from bert_pretrain.errors import InputError

_TYPES = "token_type_ids"


class SpecialCounts(NamedTuple):
    """How many special tokens a row of one segment has, and a row of two; by default BERT's."""

    single: int = 2  # [CLS] A [SEP]
    pair: int = 3  # [CLS] A [SEP] B [SEP]


BERT_COUNTS = SpecialCounts()


@dataclass(frozen=True)
class RowLayout:
    """The special tokens around the segments of a row.

    Attributes:
        special_ids: those before each segment and after the last one; perhaps none.
        special_types: the token type of each.
        segment_types: of each segment, the token type of its tokens.
    """

    special_ids: tuple[tuple[int, ...], ...]
    special_types: tuple[tuple[int, ...], ...]
    segment_types: tuple[int, ...]

    @property
    def num_special_tokens(self) -> int:
        """Special tokens of a row."""
        return sum(map(len, self.special_ids))

    def lay_out(self, *segments: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return the ids of a row and their token types."""
        input_ids, token_types = list(self.special_ids[0]), list(self.special_types[0])
        for number, segment in enumerate(segments):
            input_ids += [*segment, *self.special_ids[number + 1]]
            token_types += [self.segment_types[number]] * len(segment)
            token_types += self.special_types[number + 1]
        return input_ids, token_types


class RowLayouts(NamedTuple):
    """The layouts of rows of one segment and of two."""

    single: RowLayout
    pair: RowLayout

    @property
    def num_special_tokens(self) -> SpecialCounts:
        """Special tokens of either kind of row."""
        return SpecialCounts(self.single.num_special_tokens, self.pair.num_special_tokens)

    @classmethod
    def of_bert(cls, cls_token_id: int, sep_token_id: int) -> RowLayouts:
        """Return `[CLS] A [SEP]`, and `[CLS] A [SEP] B [SEP]` with types 0 and, after it, 1."""
        cls_ids, sep_ids = (cls_token_id,), (sep_token_id,)
        return cls(
            RowLayout((cls_ids, sep_ids), ((0,), (0,)), (0,)),
            RowLayout((cls_ids, sep_ids, sep_ids), ((0,), (0,), (1,)), (0, 1)),
        )


def read_layouts(tokenizer: PreTrainedTokenizerFast) -> RowLayouts:
    """Return how a tokenizer lays rows out; token types are 0 where it does not return them.

    Raises:
        InputError: a segment is left out, repeated, or put before an earlier one, or the tokenizer
            does not know an id that it adds.
    """
    made = _post_processed(tokenizer)
    layouts = RowLayouts(
        *(_layout_of(row, number, tokenizer) for number, row in enumerate(made, 1))
    )
    added = {i for layout in layouts for ids in layout.special_ids for i in ids}
    if unknown := added - set(tokenizer.get_vocab().values()):
        raise InputError(
            f"the tokenizer {tokenizer.name_or_path!r} adds a special token with the id "
            f"{min(unknown)}, which is none of its tokens",
            advice="change the post_processor in its tokenizer.json, or `tokenizer_name`",
        )
    return layouts


def complete_layout(tokenizer: PreTrainedTokenizerFast) -> None:
    """Give a tokenizer that adds no special token BERT's post-processor; it is saved with it."""
    backend = tokenizer.backend_tokenizer
    if any(any(encoding.special_tokens_mask) for encoding in _post_processed(tokenizer)):
        return
    cls_ids, sep_ids = [tokenizer.cls_token_id], [tokenizer.sep_token_id]
    template = processors.TemplateProcessing(
        single="cls:0 $A:0 sep:0",
        pair="cls:0 $A:0 sep:0 $B:1 sep:1",
        # Under other names: in a template a space or a colon of the tokens' own would mean more.
        special_tokens=[
            {"id": "cls", "ids": cls_ids, "tokens": [tokenizer.cls_token]},
            {"id": "sep", "ids": sep_ids, "tokens": [tokenizer.sep_token]},
        ],
    )
    existing = backend.post_processor
    if existing is None or isinstance(existing, processors.TemplateProcessing):
        backend.post_processor = template
    else:  # byte-level ones trim offsets
        backend.post_processor = processors.Sequence([existing, template])


def fit_token_types(tokenizer: PreTrainedTokenizerFast, num_token_types: int) -> bool:
    """Let a tokenizer return token types where a model embeds all that it tells, and only there.

    What it returns is saved with it, so that the exported model is called as it was trained.

    Args:
        tokenizer: changed in place.
        num_token_types: rows of the model's table of token types; 0 = it takes none.

    Returns:
        Whether the two segments of a pair are told apart by token types.
    """
    num_told = 1 + max(max(encoding.type_ids) for encoding in _post_processed(tokenizer))
    are_told = 1 < num_told <= num_token_types
    names = [name for name in tokenizer.model_input_names if name != _TYPES]
    if are_told:
        names.insert(1, _TYPES)
    if set(names) != set(tokenizer.model_input_names):
        tokenizer.model_input_names = names
        tokenizer.init_kwargs["model_input_names"] = names  # what `save_pretrained` writes
    return are_told


def _post_processed(tokenizer: PreTrainedTokenizerFast) -> tuple[Encoding, Encoding]:
    """Return what a tokenizer's post-processor makes of one segment of one token, and of two."""
    # A vocabulary of one word, because the tokenizer's own might cut any text in any way.
    backend = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    if tokenizer.backend_tokenizer.post_processor is not None:
        backend.post_processor = tokenizer.backend_tokenizer.post_processor
    return backend.encode("a"), backend.encode("a", "a")


def _layout_of(
    encoding: Encoding, num_segments: int, tokenizer: PreTrainedTokenizerFast
) -> RowLayout:
    """Return the layout of which `encoding`, with one token a segment, is an example."""
    places = [
        place for place, is_special in enumerate(encoding.special_tokens_mask) if not is_special
    ]
    segments = [encoding.sequence_ids[place] for place in places]
    if segments != list(range(num_segments)):
        shown = list(encoding.tokens)
        for place, segment in zip(places, segments, strict=True):
            shown[place] = "AB"[segment or 0]  # a second A has no number
        raise InputError(
            f"the tokenizer {tokenizer.name_or_path!r} lays {' and '.join('AB'[:num_segments])} "
            f"out as {' '.join(shown)!r} but must keep each segment once, in order",
            advice="change the post_processor in its tokenizer.json, or `tokenizer_name`",
        )
    types = encoding.type_ids
    if _TYPES not in tokenizer.model_input_names:
        types = [0] * len(types)
    bounds = list(zip([0, *(place + 1 for place in places)], [*places, len(types)], strict=True))
    return RowLayout(
        tuple(tuple(encoding.ids[start:end]) for start, end in bounds),
        tuple(tuple(types[start:end]) for start, end in bounds),
        tuple(types[place] for place in places),
    )
