"""Attention among the rows of a batch without padding: which kernels there are, and the fastest.

States of all rows stand one after the other; `bounds` say where each row begins. Rows of equal
length need no such kernel (see `unpadded`), which is all that a CPU has.
"""

from __future__ import annotations

import functools
import importlib.util
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from bert_pretrain.models.fast_paths import prefers_written_out_attention

ROWS, ROWS_WRITTEN_OUT = "rows", "rows_written_out"  # in rows of equal length


# Returns the context (R, H, d) of each query among the keys of its row, without dropout, inner
# products scaled by 1 / sqrt(d). Arguments: queries (R, H, d), keys and values (N, H, d), all
# bfloat16 or float16; bounds of rows among queries and among keys, int32 (S + 1,) each, ascending
# from 0 to R and to N; most queries and most keys of a row.
RowKernel: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, int], Tensor]


def _torch_varlen(*arguments: Any) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    context = varlen_attn(*arguments)
    assert isinstance(context, Tensor)
    return context


def _flash_attn(*arguments: Any) -> Tensor:
    from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found]

    context: Tensor = flash_attn_varlen_func(*arguments)
    return context


# By the module that each needs. torch's own has been there since 2.10.
_NEEDS = {"torch_varlen": "torch.nn.attention.varlen", "flash_attn": "flash_attn"}
KERNELS: dict[str, RowKernel] = {"torch_varlen": _torch_varlen, "flash_attn": _flash_attn}


def usable_attentions(device: torch.device, dtype: torch.dtype, *, dropout: float) -> list[str]:
    """Return the ways of attending that a model can take, simplest first.

    Args:
        device: of the model.
        dtype: that its products are computed in.
        dropout: of attention's weights; the kernels here have none.
    """
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16) or dropout:
        return [ROWS]
    found = (name for name, module in _NEEDS.items() if importlib.util.find_spec(module))
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
        num_rows: B.
        row_length: L.
        num_heads: H.
        head_width: d.
        dropout: of attention's weights.
    """
    names = usable_attentions(device, dtype, dropout=dropout)
    if len(names) == 1:
        is_written_out = prefers_written_out_attention(row_length)
        return ROWS_WRITTEN_OUT if is_written_out else ROWS, {}
    shape = (num_rows * row_length, num_heads, head_width)
    states = [torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(3)]
    bounds = torch.arange(num_rows + 1, dtype=torch.int32, device=device) * row_length
    # One token of padding, as most batches have: with a mask torch takes another kernel.
    mask = torch.ones(num_rows, 1, 1, row_length, dtype=torch.bool, device=device)
    mask[0, 0, 0, -1] = False

    def attend(name: str) -> Tensor:
        if name != ROWS:
            query, key, value = states
            return KERNELS[name](query, key, value, bounds, bounds, row_length, row_length)
        query, key, value = (
            state.view(num_rows, row_length, num_heads, head_width).transpose(1, 2)
            for state in states
        )
        context = F.scaled_dot_product_attention(query, key, value, mask)
        return context.transpose(1, 2).reshape(shape)

    def forward_and_backward(name: str) -> None:
        torch.autograd.grad(attend(name).sum(), states)

    milliseconds = {}
    for name in names:
        try:
            milliseconds[name] = _median_milliseconds(partial(forward_and_backward, name))
        except (RuntimeError, ImportError, TypeError):
            # Built for other devices, or another version of the function: not a way to attend here.
            continue
    return min(milliseconds, key=milliseconds.__getitem__), milliseconds


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
