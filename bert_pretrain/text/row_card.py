"""What a person is told of the rows of an epoch: how full they are, and what they read."""

from __future__ import annotations

import numpy as np

from bert_pretrain.errors import spell
from bert_pretrain.text.exact_pairs import MIN_DISTANCE
from bert_pretrain.text.pairs import EpochPlan, PairMode
from bert_pretrain.text.windows import IS_RANDOM, NO_PAIR

# Below these shares the card warns: of the tokens that an epoch reads, and of the rows with a pair.
_LEAST_READ, _LEAST_PAIRS = 0.8, 0.2
_WHY_UNREAD = (
    "segments are cut to the length of their partners', which costs most where documents are short "
    "or few; give more documents, or pass `objective` mlm, which reads every token"
)
_WHY_UNREAD_BY_GOOGLE = (
    "the published algorithm leaves out what does not fit into a pair; pass `pair_mode` exact, or "
    "`objective` mlm, which reads every token"
)


def describe_rows(plan: EpochPlan, num_blocks: int, pair_mode: PairMode) -> list[str]:
    """Return lines of a data card: a name, or WARNING, and what it is.

    Args:
        plan: of one block.
        num_blocks: how many an epoch has; they are alike.
        pair_mode: how its pairs were drawn.
    """
    is_pair = plan.next_sentence_label != NO_PAIR
    about = "about " if num_blocks > 1 else ""
    num_special = np.where(is_pair, plan.num_special_tokens.pair, plan.num_special_tokens.single)
    num_tokens = plan.a_length + plan.b_length + num_special
    rows = (
        f"{about}{num_blocks * len(plan):,} an epoch of up to {plan.row_length} tokens, "
        f"fill {100 * num_tokens.mean() / plan.row_length:.1f} %"
    )
    if plan.with_pairs:
        is_random = plan.next_sentence_label[is_pair] == IS_RANDOM
        share = 100 * float(is_random.mean()) if len(is_random) else 0.0
        label = "swapped" if pair_mode == "sop" else "random next"
        rows += f", {label} {share:.1f} % of {about}{num_blocks * len(is_random):,} pairs"
        rows += f", {about}{num_blocks * int((~is_pair).sum()):,} single segments"
    lines = [_line("rows", rows)]
    if plan.num_same_document:
        lines.append(_line("partners", _describe_partners(plan, int(is_pair.sum()))))
    if plan.num_tokens:
        read = plan.num_read / plan.num_tokens
        lines.append(_line("tokens read", f"{about}{100 * read:.1f} % an epoch"))
        lines += _warnings(read, float(is_pair.mean()), plan.with_pairs, pair_mode)
    return lines


def _line(name: str, what: str) -> str:
    return f"{name:<17}{what}"


def _describe_partners(plan: EpochPlan, num_pairs: int) -> str:
    least = MIN_DISTANCE * (plan.row_length - plan.num_special_tokens.pair)
    return (
        f"{100 * plan.num_same_document / num_pairs:.1f} % of the pairs have both segments from "
        f"one document, where windows begin at least {least:,} tokens apart"
    )


def _warnings(read: float, pair_share: float, with_pairs: bool, pair_mode: PairMode) -> list[str]:
    found = []
    if read < _LEAST_READ:
        why = _WHY_UNREAD_BY_GOOGLE if pair_mode == "google" else _WHY_UNREAD
        found.append(f"an epoch reads {100 * read:.1f} % of the tokens: {why}")
    if with_pairs and pair_share < _LEAST_PAIRS:
        way = "more documents of several sentences give more"
        if pair_mode == "exact":
            way += ", as do partners within a long document (`same_document_partners`)"
        found.append(
            f"{100 * pair_share:.1f} % of the rows are pairs, and next sentences are learnt from "
            f"these alone; {way}; `objective` mlm does without"
        )
    return [spell(f"WARNING: {message}") for message in found]
