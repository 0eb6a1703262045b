"""Which way of attending is fastest on a device: measured on a GPU, by the length on a CPU."""

from __future__ import annotations

import functools
import importlib.util
import statistics
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bert_pretrain.models.attention_kernels import KERNELS, NEEDS, ROWS, ROWS_WRITTEN_OUT
from bert_pretrain.models.fast_paths import prefers_written_out_attention
from bert_pretrain.models.unpadded import RowLayout, attend_in_rows

_MOST_TOKENS = 2**15  # of the batch that is measured: enough to fill a card, little memory
_FILL = 0.9  # of its rows; short documents have less, which speaks for kernels without padding


def usable_attentions(device: torch.device, dtype: torch.dtype, *, dropout: float) -> list[str]:
    """Return the ways of attending that a model can take, simplest first.

    Args:
        device: of the model.
        dtype: that its products are computed in.
        dropout: of attention's weights; the kernels have none.
    """
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16) or dropout:
        return [ROWS]
    found = (name for name in KERNELS if importlib.util.find_spec(NEEDS[name]))
    return [ROWS, *found]


@functools.cache
def fastest_attention(
    device: torch.device,
    dtype: torch.dtype,
    *,
    num_rows: int,
    row_length: int,
    num_heads: int,
    head_width: int,
    dropout: float = 0.0,
) -> tuple[str, dict[str, float]]:
    """Return the fastest way of attending, and how many milliseconds each took where measured.

    Forward and backward passes of a batch are measured on a GPU, in a fraction of a second. A CPU
    has two ways, and which is faster depends on the length alone.

    Args:
        device: of the model.
        dtype: that its products are computed in.
        num_rows: B, of a forward pass.
        row_length: L.
        num_heads: H.
        head_width: D / H.
        dropout: of attention's weights.
    """
    names = usable_attentions(device, dtype, dropout=dropout)
    if len(names) == 1:
        is_written_out = prefers_written_out_attention(row_length)
        return ROWS_WRITTEN_OUT if is_written_out else ROWS, {}
    num_rows = max(1, min(num_rows, _MOST_TOKENS // row_length))
    milliseconds = {}
    for name in names:
        try:
            step = _pass(
                name,
                _layout(name, num_rows, row_length, device),
                (num_heads, head_width),
                dtype,
                device,
            )
            milliseconds[name] = _median_milliseconds(step)
        except (RuntimeError, ImportError, TypeError):
            # Built for other devices, or another version of the function: not a way to attend here.
            continue
    return min(milliseconds, key=milliseconds.__getitem__, default=ROWS), milliseconds


def _layout(name: str, num_rows: int, row_length: int, device: torch.device) -> RowLayout:
    """Return rows that are filled alike, as `text.collator.computed_tokens` describes them."""
    num_real = max(1, round(_FILL * row_length))
    mask = torch.arange(row_length, device=device).expand(num_rows, -1) < num_real
    bounds = torch.arange(num_rows + 1, dtype=torch.int32, device=device) * num_real
    index = mask.flatten().nonzero().flatten()
    return RowLayout(num_rows, row_length, index, mask[:, None, None], bounds, name)


def _pass(
    name: str,
    layout: RowLayout,
    heads: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> Callable[[], None]:
    """Return a function that makes a forward and a backward pass of attention."""
    assert layout.index is not None
    shape = (1, len(layout.index), *heads)
    states = [
        torch.randn(shape, device=device, dtype=dtype).transpose(1, 2).requires_grad_()
        for _ in range(3)
    ]

    def step() -> None:
        query, key, value = states
        context: Tensor
        context, _ = attend_in_rows(
            nn.Module(), query, key, value, None, scaling=heads[1] ** -0.5, layout=layout
        )
        torch.autograd.grad(context.sum(), states)

    return step


def _median_milliseconds(step: Callable[[], None]) -> float:
    times: list[float] = []
    for number in range(8):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        step()
        end.record()
        end.synchronize()
        if number >= 3:
            times.append(begin.elapsed_time(end))
    return statistics.median(times)
