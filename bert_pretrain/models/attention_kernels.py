"""Kernels of a GPU that attend among the rows of a batch without padding.

States of all rows stand one after the other; bounds say where each row begins. Rows of equal length
need no such kernel (see `unpadded`), and a CPU has none. `attention_choice` says which is fastest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor

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


# The module that each needs; torch's own has been there since 2.10.
NEEDS = {"torch_varlen": "torch.nn.attention.varlen", "flash_attn": "flash_attn"}
KERNELS: dict[str, RowKernel] = {"torch_varlen": _torch_varlen, "flash_attn": _flash_attn}
