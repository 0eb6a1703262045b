"""What people are told of an image corpus: what it holds, what it lacks, and what is strange."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bert_pretrain.images.corpus import ImageCorpus
from bert_pretrain.images.decoding import MODES
from bert_pretrain.images.levels import PixelRange, describe_absurdity
from bert_pretrain.images.streaming import StreamedPixels
from bert_pretrain.images.survey import describe_mixture

_NAMED_CLASSES = 20


def image_card(corpus: ImageCorpus) -> str:
    """Describe a corpus as text: what it holds, what was left out and where its pixels are."""
    manifest = corpus.manifest
    counts = manifest["counts"]
    _, height, width, num_channels = corpus.pixels.shape
    skipped = f"{counts['skipped']:,}"
    if counts["skipped"]:
        more = ", ..." if counts["skipped"] > len(manifest["skipped"]) else ""
        skipped += ": " + ", ".join(manifest["skipped"]) + more
    modes = ", ".join(f"{count:,} {mode}" for mode, count in sorted(manifest["modes"].items()))
    fit = ", shorter side resized, centre cropped" if manifest["image_size"] else ""
    if isinstance(manifest["image_size"], Sequence):
        fit = ", resized as a whole"
    if isinstance(corpus.pixels, StreamedPixels):
        place = "decoded whenever they are read"
    elif isinstance(corpus.pixels, np.memmap):
        place = f"{corpus.pixels.nbytes:,} bytes mapped from {corpus.pixels.filename}"
    else:
        place = f"{corpus.pixels.nbytes:,} bytes in memory"
    if corpus.whole is not None:
        place += f"; views see the edges too, by as many in {corpus.whole.filename}"  # type: ignore[attr-defined]  # mapped
    return "\n".join(
        [
            f"images           {manifest['source']['description']}",
            f"number           {counts['images']:,} ({counts['training']:,} training, "
            f"{counts['validation']:,} held out); duplicates dropped: {counts['duplicates']:,}; "
            f"skipped: {skipped}",
            f"size             {width} x {height} pixels (width x height), {MODES[num_channels]} "
            f"(from {modes}{fit})",
            *_levels(manifest["pixel_range"]),
            f"classes          {_classes(corpus)}",
            f"mean, std        {_listed(corpus.mean)}, {_listed(corpus.std)} of the training "
            "pixels in [0, 1]",
            f"pixels           {place}",
            *(f"WARNING: {warning}" for warning in corpus_warnings(corpus)),
        ]
    )


def corpus_warnings(corpus: ImageCorpus) -> list[str]:
    """Return what is strange about the images of a corpus, whatever is learnt from them."""
    mixture = describe_mixture(corpus.manifest["modes"], corpus.pixels.shape[-1])
    absurdity = describe_absurdity(corpus.mean.tolist(), corpus.std.tolist())
    mixture = f"{mixture} (`num_channels`)" if mixture else None
    return [warning for warning in (corpus.warning, mixture, absurdity) if warning]


def _levels(pixel_range: tuple[float, float] | None) -> list[str]:
    if pixel_range is None:
        return []
    return [
        f"grey levels      {PixelRange(*pixel_range)} of images of more than 8 bits become 0:255 "
        "(`pixel_range`)"
    ]


def _classes(corpus: ImageCorpus) -> str:
    if corpus.labels is None:
        return "no labels"
    per_class = np.bincount(corpus.labels[corpus.labels >= 0], minlength=len(corpus.label_names))
    if len(per_class) > _NAMED_CLASSES:
        text = f"{len(per_class):,} of {per_class.min():,} to {per_class.max():,} images"
    else:
        text = ", ".join(
            f"{name} {count:,}" for name, count in zip(corpus.label_names, per_class, strict=True)
        )
    if num_unlabelled := int((corpus.labels < 0).sum()):
        text += f"; without a label: {num_unlabelled:,}"
    if contradictions := corpus.manifest["counts"]["contradictions"]:
        text += f", of them {contradictions:,} that lie in several classes"
    return text


def _listed(values: NDArray[np.float32]) -> str:
    return "(" + ", ".join(f"{value:.4f}" for value in values) + ")"
