"""A running average of the weights, kept beside them and put in their place to be judged.

Enters: the model in training, whose parameters may be sharded. Leaves: after every update the
average of each, and on demand the whole model with it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bert_pretrain.training.sharding import DistributedModel, local


class WeightAverage:
    """The exponential moving average of a model's trained parameters, in float32.

    After t updates it is (1 - decay) / (1 - decay^t) * sum of decay^(t - i) * w_i over the weights
    w_i after update i: the initial weights have no part in it (the bias correction of Kingma & Ba
    2015, section 3). An update that is skipped counts, as it does in the schedule; the weights that
    it leaves as they are enter once more.

    Buffers and frozen parameters are not averaged; an averaged model has those in training.

    Attributes:
        values: the averages by the parameters' names, each where its parameter lies and divided
            among processes as it is.
    """

    def __init__(self, model: DistributedModel, decay: float) -> None:
        """Begin with the weights as they are.

        Args:
            model: whose parameters are averaged, float32.
            decay: the largest share that is kept of the average, in (0, 1).
        """
        self._model = model
        self._decay = decay
        self._parameters = {
            name: parameter
            for name, parameter in model.trained.named_parameters()
            if parameter.requires_grad
        }
        assert all(p.dtype == torch.float32 for p in self._parameters.values())
        self.values: dict[str, Tensor] = {}
        self.restart()

    def restart(self) -> None:
        """Begin anew with the weights as they are."""
        self.values.clear()  # first, so that no two are in memory
        self.values.update((name, p.detach().clone()) for name, p in self._parameters.items())

    @torch.no_grad()
    def update(self, num_updates: int) -> None:
        """Take in the weights after so many updates; nothing waits for the device."""
        before, now = (1 - self._decay ** (num_updates - i) for i in (1, 0))
        kept = self._decay * before / now
        averages = [local(value) for value in self.values.values()]
        weights = [local(parameter) for parameter in self._parameters.values()]
        torch._foreach_lerp_(averages, weights, 1 - kept)

    @contextlib.contextmanager
    def applied(self) -> Iterator[PreTrainedModel]:
        """Lend the whole model with the averaged weights; all processes must call it.

        Not sharded, it is the model in training itself, which gets its own weights back in the end:
        they change places with the averages, and nothing is copied. Sharded, it is a copy.
        """
        if self._model.is_sharded:
            yield self._model.plain(self.values)
            return
        self._exchange()
        try:
            yield self._model.plain()
        finally:
            self._exchange()

    def means(self, measure: Callable[[PreTrainedModel], dict[str, float]]) -> dict[str, float]:
        """Return what `measure` finds of the averaged model, under names that begin with ema_."""
        with self.applied() as model:
            return {f"ema_{name}": mean for name, mean in measure(model).items()}

    def _exchange(self) -> None:
        for name, parameter in self._parameters.items():
            parameter.data, self.values[name] = self.values[name], parameter.data
