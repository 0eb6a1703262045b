"""The floating-point operations that learning from text needs, counted from a model's parts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class TextFlops:
    """What a token, a predicted token and attention cost a text model.

    A product of matrices is two operations an element, and its backward pass twice its forward
    pass: 6 x the numbers of a matrix for each of its inputs. The head is counted where a loss reads
    it, and padding never; the few numbers that judge pairs are left out.

    Attributes:
        per_token: numbers in the matrices that every token is multiplied with.
        per_prediction: those of the head that scores the vocabulary.
        width: of the states that attention compares.
        windows: of each layer, how many tokens a token attends to; 0 = all of its row.

    Source: Chowdhery et al. 2022, appendix B, for an encoder with a sparse head.
    """

    per_token: int
    per_prediction: int
    width: int
    windows: tuple[int, ...]

    @classmethod
    def of(cls, model: PreTrainedModel) -> TextFlops:
        """Count the matrices of a masked-LM model, whose weights may be on the device `meta`."""
        config, encoder = model.config, model.base_model
        pooler = getattr(encoder, "pooler", None)
        within = _linear_sizes(encoder) - (_linear_sizes(pooler) if pooler is not None else 0)
        # ALBERT uses the matrices of a group for several layers.
        within *= config.num_hidden_layers // getattr(
            config, "num_hidden_groups", config.num_hidden_layers
        )
        everything = sum(
            module.weight.numel()
            for module in model.modules()
            if isinstance(module, nn.Linear) and module.out_features > 2
        )
        kinds = (
            getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
        )
        window = 2 * (getattr(config, "sliding_window", None) or 0) + 1
        windows = tuple(0 if kind == "full_attention" else window for kind in kinds)
        return cls(within, everything - _linear_sizes(encoder), config.hidden_size, windows)

    def count(self, lengths: Tensor, num_predicted: int) -> float:
        """Return the operations of rows, forward and backward.

        Args:
            lengths: int64 (B,), real tokens of each row, on the host.
            num_predicted: masked tokens.
        """
        attended = sum(
            num_layers * int((lengths * (lengths.clamp(max=window) if window else lengths)).sum())
            for window, num_layers in Counter(self.windows).items()
        )
        return float(
            6 * self.per_token * int(lengths.sum())
            + 12 * self.width * attended
            + 6 * self.per_prediction * num_predicted
        )


def _linear_sizes(module: nn.Module) -> int:
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))
