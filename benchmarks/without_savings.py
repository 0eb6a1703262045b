"""run_pretraining.py with an exact saving switched off: `without_savings.py NAME FLAGS`.

The losses are the same to within rounding; only what is computed beside them differs. The savings
follow from the index tensors of a batch, so other ones are put into the batches of this process:

    sparse_head   the last layer and the vocabulary's scores are computed for every real token
    unpadding     padding is computed as if it were tokens, and only attention leaves it out
    both          no index tensors at all: the model computes what transformers' class computes
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import results  # noqa: F401  # puts the checkout on the path
from numpy.typing import NDArray

from bert_pretrain.commands.pretrain import main
from bert_pretrain.text import collator

Indices = dict[str, NDArray[np.integer[Any]]]
_computed_tokens = collator.computed_tokens


def without_sparse_head(
    attention_mask: NDArray[np.int64], masked_positions: NDArray[np.int64], **settings: Any
) -> Indices:
    """Return indices by which every real token is read; most of them have no label."""
    num_rows, row_length = attention_mask.shape
    column = np.arange(row_length)
    is_read = (attention_mask != 0) & (column > 0)  # [CLS] is read in any case
    found = _computed_tokens(attention_mask, np.where(is_read, column, -1), **settings)
    # As many slots as tokens; -1 is an unused one, so that the loss is divided as before.
    slots = np.full((num_rows, row_length), -1)
    slots[:, : masked_positions.shape[1]] = masked_positions
    return found | {"masked_positions": slots}


def without_unpadding(
    attention_mask: NDArray[np.int64], masked_positions: NDArray[np.int64], **settings: Any
) -> Indices:
    """Return indices by which padding is computed too; attention still looks at the mask."""
    found = _computed_tokens(np.ones_like(attention_mask), masked_positions, **settings)
    return found | {"token_index": np.arange(attention_mask.size)}


def without_both(*_: Any, **__: Any) -> Indices:
    """Return no indices."""
    return {}


SAVINGS = {
    "sparse_head": without_sparse_head,
    "unpadding": without_unpadding,
    "both": without_both,
}


if __name__ == "__main__":
    collator.computed_tokens = SAVINGS[sys.argv[1]]
    sys.exit(main(sys.argv[2:]))
