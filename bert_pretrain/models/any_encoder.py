"""Any encoder that transformers has a masked-LM class for, scored at the masked positions alone.

A configuration enters; a subclass of transformers' own class leaves, which adds no parameter and
keeps its name, so that what it saves is that class's. BERT has a faster class of its own, see
`bert`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_PRETRAINING_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
)

from bert_pretrain.models.text_losses import PretrainingOutput, pretraining_output


class Heads(NamedTuple):
    """How a class of transformers makes scores of its encoder's output.

    Attributes:
        scores: of a model and states (..., D): scores of the vocabulary (..., V).
        relationship: of a model and pooled first states (B, D): scores of the pairs (B, 2), [in
            order, not]; None = the class has no such head.
        reads_padding: whether the state of a token depends on how much padding follows its row.
    """

    scores: Callable[[Any, Tensor], Tensor]
    relationship: Callable[[Any, Tensor], Tensor] | None = None
    reads_padding: bool = False


def _deberta_scores(model: Any, states: Tensor) -> Tensor:
    scores: Tensor
    if model.legacy:
        scores = model.cls(states)
    else:
        scores = model.lm_predictions(states, model.base_model.embeddings.word_embeddings)
    return scores


_LM_HEAD = Heads(lambda model, states: model.lm_head(states))
_CLS = Heads(lambda model, states: model.cls(states))
_CLS_WITH_PAIRS = Heads(
    lambda model, states: model.cls.predictions(states),
    lambda model, pooled: model.cls.seq_relationship(pooled),
)
_GENERATOR = Heads(
    lambda model, states: model.generator_lm_head(model.generator_predictions(states))
)
# Classes that can be divided into encoder and head. Another one computes its scores at every
# position. `tests/models/test_any_encoder.py` compares each with the class as it is.
HEADS = {
    "AlbertForMaskedLM": Heads(lambda model, states: model.predictions(states)),
    "AlbertForPreTraining": Heads(
        lambda model, states: model.predictions(states),
        lambda model, pooled: model.sop_classifier(pooled),
    ),
    "CamembertForMaskedLM": _LM_HEAD,
    "ConvBertForMaskedLM": _GENERATOR._replace(reads_padding=True),  # by its convolutions
    "DebertaForMaskedLM": Heads(_deberta_scores),
    "DebertaV2ForMaskedLM": Heads(_deberta_scores),
    "DistilBertForMaskedLM": Heads(
        lambda model, states: model.vocab_projector(
            model.vocab_layer_norm(model.activation(model.vocab_transform(states)))
        )
    ),
    "ElectraForMaskedLM": _GENERATOR,
    "ErnieForMaskedLM": _CLS,
    "ErnieForPreTraining": _CLS_WITH_PAIRS,
    "MegatronBertForMaskedLM": _CLS,
    "MegatronBertForPreTraining": _CLS_WITH_PAIRS,
    "ModernBertForMaskedLM": Heads(lambda model, states: model.decoder(model.head(states))),
    "MPNetForMaskedLM": _LM_HEAD,
    "RobertaForMaskedLM": _LM_HEAD,
    "RoFormerForMaskedLM": _CLS,
    "XLMRobertaForMaskedLM": _LM_HEAD,
}


class ScoresMaskedTokens:
    """A masked-LM class of transformers that can return the losses of pretraining.

    Called without labels it is the class that it is mixed into.

    Attributes:
        heads: of the class that it is mixed into; None = it is not in the table.
        tells_segments: whether the encoder embeds two segments differently.
    """

    heads: Heads | None  # by class, and kept: FSDP gives the class of a model another name

    def __init__(self, config: PreTrainedConfig) -> None:
        """Build the modules of the class of transformers."""
        super().__init__(config)  # type: ignore[call-arg]  # mixed in
        self.tells_segments = num_token_types(self) >= 2

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        *,
        token_index: Tensor | None = None,
        read_index: Tensor | None = None,
        masked_reads: Tensor | None = None,
        row_bounds: Tensor | None = None,
        read_slot: Tensor | None = None,
        read_bounds: Tensor | None = None,
        masked_positions: Tensor | None = None,
        **kwargs: Any,
    ) -> PretrainingOutput | Any:
        """Compute the losses, or without labels what the class of transformers does.

        Args:
            input_ids: int64 (B, L), after masking.
            attention_mask: int64 (B, L), 1 = real.
            token_type_ids: int64 (B, L); left out where the encoder knows one segment only.
            labels: int64 (B, L), the original id where a token is to be predicted, -100 elsewhere.
            next_sentence_label: int64 (B,), 0 = in order, 1 = not, -100 = not judged.
            token_index: int64 (N,), as the collator's `computed_tokens` makes it, like the next
                two; None = all tokens are real.
            read_index: int64 (R,); None = every position is scored.
            masked_reads: int64 (R - B,).
            row_bounds: not used, like the three that follow; they are for `bert`.
            read_slot: see there.
            read_bounds: see there.
            masked_positions: see there.
            kwargs: passed to the class of transformers.
        """
        model: Any = self
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None and self.tells_segments:
            inputs["token_type_ids"] = token_type_ids
        if labels is None:
            return super().forward(**inputs, **kwargs)  # type: ignore[misc]  # mixed in
        targets, places = labels.flatten(), None
        if read_index is not None:
            assert masked_reads is not None
            places = read_index if token_index is None else token_index[read_index]
            places = places[masked_reads]
            targets = targets[places]
        heads = self.heads
        if heads is None:
            output = super().forward(**inputs, **kwargs)  # type: ignore[misc]
            scores = output[0].flatten(0, 1)
            return pretraining_output(_taken(scores, places), targets)
        output = model.base_model(**inputs, **kwargs)
        states = _taken(output[0].flatten(0, 1), places)
        relationship = None
        if heads.relationship is not None:
            relationship = heads.relationship(model, output.pooler_output)
        scores = heads.scores(model, states)
        return pretraining_output(scores, targets, relationship, next_sentence_label)


def _taken(rows: Tensor, places: Tensor | None) -> Tensor:
    return rows if places is None else rows.index_select(0, places)


def stock_class(config: PreTrainedConfig, *, with_pairs: bool) -> type[PreTrainedModel] | None:
    """Return the class of transformers that predicts masked words; None if there is none.

    Args:
        config: of the encoder.
        with_pairs: whether it must have a head for pairs that this package knows.
    """
    mapping = MODEL_FOR_PRETRAINING_MAPPING if with_pairs else MODEL_FOR_MASKED_LM_MAPPING
    found = mapping.get(type(config), None)
    if isinstance(found, tuple):
        found = found[0]
    if found is not None and with_pairs:
        heads = HEADS.get(found.__name__)
        found = found if heads is not None and heads.relationship is not None else None
    return found  # type: ignore[no-any-return]


@functools.cache
def with_losses(stock: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Return a subclass of a masked-LM class of transformers that returns losses, of its name."""
    # transformers reads the module of a class to find out what its attention can do.
    described = {"__module__": stock.__module__, "__doc__": ScoresMaskedTokens.__doc__}
    heads = {"heads": HEADS.get(stock.__name__)}
    return type(stock.__name__, (ScoresMaskedTokens, stock), described | heads)


def num_token_types(model: PreTrainedModel) -> int:
    """Return how many token types a text model embeds; 0 = it takes none."""
    takes_them = "token_type_ids" in inspect.signature(model.base_model.forward).parameters
    return int(getattr(model.config, "type_vocab_size", 0)) if takes_them else 0


def is_scored_everywhere(model: PreTrainedModel) -> bool:
    """Return whether a model computes scores that no loss reads, since it cannot be divided."""
    return isinstance(model, ScoresMaskedTokens) and model.heads is None


def may_be_cut(model_class: type[PreTrainedModel]) -> bool:
    """Return whether a batch may end with its longest row, since padding changes nothing."""
    heads: Heads | None = getattr(model_class, "heads", None)
    return heads is not None and not heads.reads_padding
