"""Pictures of what contrastive learning compares, as its losses compare it.

Views of held-out images and their projections enter; PNG files leave.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from bert_pretrain.data.stream import Batch
from bert_pretrain.evaluation.pictures import ImageRow, Triplets, draw_triplets, image_rows
from bert_pretrain.images.collator import channels_last
from bert_pretrain.losses.contrastive import Negatives, choose_negatives
from bert_pretrain.losses.distances import Distance, normalize_rows, pairwise_distance
from bert_pretrain.objectives.image_monitor import NUM_SHOWN

# Held-out images among which negatives are looked for; the first few are drawn.
NUM_COMPARED = 128

_DISTANCES: dict[Distance, str] = {
    "l2": "Euclidean distance",
    "l2_squared": "squared Euclidean distance",
    "cosine": "cosine distance",
}
_NEGATIVES: dict[Negatives, str] = {
    "random": "each negative is a random one of the others",
    "semi_hard": "each negative is the closest of the others that is farther away than the "
    "positive (semi-hard)",
    "hard": "each negative is the closest of the others",
    "all": "each negative is the closest of the others, all of which the loss compares",
}


def show_triplets(
    anchors: Tensor,
    positives: Tensor,
    e1: Tensor,
    e2: Tensor,
    batch: Batch,
    path: Path,
    *,
    margin: float,
    distance: Distance,
    normalize: bool,
    negatives: Negatives,
) -> None:
    """Draw the first triplets of a held-out batch.

    Args:
        anchors: images float (B, C, H, W) in [0, 1].
        positives: their other views.
        e1: projections (B, D) of the anchors.
        e2: projections of the positives.
        batch: that the images are from, with what the loss draws its negatives by.
        path: PNG to write.
        margin: see `triplet_loss`, as for the others.
        distance: of two projections.
        normalize: whether projections are scaled to length 1 before.
        negatives: which images are negatives; of `all` the closest is drawn.
    """
    if normalize:
        e1, e2 = normalize_rows(e1), normalize_rows(e2)
    near = pairwise_distance(e1, e2, distance)
    chosen = choose_negatives(
        e1,
        near,
        e1,
        batch["image_ids"][:, None] != batch["image_ids"],
        distance,
        "hard" if negatives == "all" else negatives,
        batch["negative_offset"],
    )
    far = pairwise_distance(e1, e1[chosen], distance)
    length = " of length 1" if normalize else ""
    draw_triplets(
        Triplets(
            channels_last(anchors[:NUM_SHOWN]),
            channels_last(positives[:NUM_SHOWN]),
            channels_last(anchors[chosen[:NUM_SHOWN]]),
            positive_distances=near[:NUM_SHOWN].cpu().numpy(),
            negative_distances=far[:NUM_SHOWN].cpu().numpy(),
            margin=margin,
        ),
        path,
        caption=f"d is the {_DISTANCES[distance]} of embeddings{length}; of {len(e1)} images "
        f"{_NEGATIVES[negatives]}",
    )


def draw_pairs(
    images: tuple[Tensor, Tensor, Tensor], e1: Tensor, e2: Tensor, image_ids: Tensor, path: Path
) -> None:
    """Draw images above their two views, with the similarities that NT-Xent compares.

    Args:
        images: originals, first and second views, float (B, C, H, W) in [0, 1].
        e1: projections (B, D) of the first views.
        e2: projections of the second views.
        image_ids: int64 (B,), which image a row shows.
        path: PNG to write.
    """
    first, second = normalize_rows(e1), normalize_rows(e2)
    own = (first * second).sum(dim=1)
    is_own = (image_ids[:, None] == image_ids).repeat(1, 2)  # (B, 2B)
    others = (first @ torch.cat([first, second]).T).masked_fill(is_own, -torch.inf).amax(dim=1)
    is_found = (own > others).tolist()
    notes = [
        f"{mine:.2f} | {best:.2f} {chr(0x2713 if found else 0x2717)}"
        for mine, best, found in zip(own.tolist(), others.tolist(), is_found, strict=True)
    ]
    labels = ("image", "first view", "second view")
    rows = [
        ImageRow(label, channels_last(part[:NUM_SHOWN]))
        for label, part in zip(labels, images, strict=True)
    ]
    rows[-1] = ImageRow(rows[-1].label, rows[-1].images, notes[:NUM_SHOWN])
    image_rows(
        rows,
        path,
        title="Two views of held-out images: the model is to find the pair among views of others",
        caption="Below each: cosine similarity of its two views | highest one of its first view "
        f"with a view of another of {len(own)} images; \N{CHECK MARK} = the pair is closer. "
        f"{sum(is_found)} of {len(own)} pairs are found.",
    )
