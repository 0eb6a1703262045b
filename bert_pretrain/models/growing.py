"""A pretrained text model with more tokens or positions than it was trained with."""

from __future__ import annotations

import copy
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from bert_pretrain.errors import InputError
from bert_pretrain.models.positions import first_position, position_table

PositionGrowth: TypeAlias = Literal["no", "repeat", "interpolate"]


@torch.no_grad()
def grown(
    model: PreTrainedModel, sizes: dict[str, int], *, positions: PositionGrowth
) -> PreTrainedModel:
    """Return a model of the same class with larger tables and all the weights of this one.

    New tokens get the mean of the old ones, in every table of tokens and in the output bias.
    Positions that follow from a formula go on by it.

    Args:
        model: on the host; it is not changed.
        sizes: fields of the new configuration, `vocab_size` or `max_position_embeddings` or both,
            none smaller than now.
        positions: how a learnt table of positions grows: `repeat` it from its beginning, which
            keeps all that was learnt of them and of their distances; `interpolate`: stretch it,
            which keeps their order, but moves them closer to each other.

    Raises:
        InputError: something else depends on the number of positions.
    """
    config = copy.deepcopy(model.config)
    for name, size in sizes.items():
        setattr(config, name, size)
    larger = type(model)(config)
    table = position_table(larger)
    learnt = {
        name
        for name, weight in larger.named_parameters(remove_duplicate=False)
        if weight.requires_grad
    }
    of_positions = {f"{name}.weight" for name, module in larger.named_modules() if module is table}
    grows_tokens = (model.config.vocab_size, config.vocab_size)
    found = model.state_dict()
    for name, weight in larger.state_dict().items():  # which share their memory with the model
        old = found[name]
        if weight.shape == old.shape:
            weight.copy_(old)
        elif name not in learnt:
            continue  # made by a formula
        elif name in of_positions:
            weight.copy_(_more_positions(old, len(weight), first_position(table), positions))
        elif (len(old), len(weight)) == grows_tokens:
            weight[: len(old)] = old
            weight[len(old) :] = old.mean(dim=0)
        else:
            raise InputError(
                f"in {type(model).__name__} of transformers {name} depends on the number of "
                "positions too, so that they cannot grow here",
                advice="lower `max_seq_length`",
            )
    return larger


def _more_positions(table: Tensor, count: int, first: int, how: PositionGrowth) -> Tensor:
    """Return a table (count, D) made of a smaller one, whose positions begin at row `first`."""
    unused, trained = table[:first], table[first:]
    if how == "repeat":
        more = trained[torch.arange(count - first) % len(trained)]
    else:
        wide = trained.T[None]  # (1, D, P)
        more = F.interpolate(wide, count - first, mode="linear", align_corners=True)[0].T
    return torch.cat([unused, more])
