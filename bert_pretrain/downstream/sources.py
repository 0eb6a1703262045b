"""Everything that a classifier is trained and evaluated on, encoded for one model.

A `LabelledSource`, a task and a model's folder or Hub id enter; `Splits` leave, and digests of
their rows, which tell equal rows and changed ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import AutoImageProcessor, PreTrainedConfig

from bert_pretrain.data.random import Purpose, permutation
from bert_pretrain.downstream.data import ImageDataset, LabelledDataset, augmentation_of, tokenize
from bert_pretrain.downstream.labelled_images import read_image_splits
from bert_pretrain.downstream.labelled_rows import LabelledRows, LabelledSource, read_text_splits
from bert_pretrain.downstream.labels import LabelSpace, as_number, describe_guess, is_missing, tidy
from bert_pretrain.downstream.models import (
    is_image_config,
    load_text_tokenizer,
    longest_row,
    read_model_config,
)
from bert_pretrain.downstream.tables import Texts
from bert_pretrain.downstream.tasks import Task, find_labels
from bert_pretrain.errors import InputError
from bert_pretrain.models.image_processor import read_processor

_DEFAULT_LENGTH = 128  # tokens
# Bytes; among a billion different rows two have the same digest with a probability of 1e-21.
_DIGEST_SIZE = 16

_NAMED_CLASSES = 12


@dataclass(frozen=True)
class Splits:
    """Everything that is trained and evaluated on, encoded for one model.

    Attributes:
        rows: by name of the split: train, validation, test; the labels of test may be missing.
        texts: of the text splits, before tokenisation.
        processor: the model's tokenizer or image processor.
        max_seq_length: longest row in tokens; 0 for images.
        notes: lines for people: on texts that are cut, on images that were left out or look
            strange, and on labels that could have been read in another way.
    """

    rows: dict[str, LabelledDataset]
    texts: dict[str, Texts]
    labels: LabelSpace
    config: PreTrainedConfig
    processor: Any
    max_seq_length: int
    notes: tuple[str, ...] = ()


def open_splits(
    model: str,
    source: LabelledSource,
    task: Task,
    *,
    seed: int,
    measured_on: Sequence[str] = ("validation",),
) -> Splits:
    """Read the rows of a source and encode them for a model.

    Args:
        model: folder or Hub id; decides whether rows are texts or images, and how they are encoded.
        source: of the rows.
        task: says what the labels are.
        seed: of the rows held out for validation, and of the augmentation.
        measured_on: splits of which one is needed: where the source has none of them, training rows
            are held out as `validation`; empty = none is needed.

    Raises:
        InputError: something cannot be read, a column or a label is missing, or a label was not
            trained on.
    """
    config = read_model_config(model)
    is_image = is_image_config(config)
    max_seq_length = 0
    if is_image:
        normalisation = read_processor(model)
        processor = AutoImageProcessor.from_pretrained(model, trust_remote_code=False)
        read = read_image_splits(source, processor, num_channels=config.num_channels)
    else:
        processor = load_text_tokenizer(model, config)
        read = read_text_splits(source, task)
        is_pair = read["train"].content.second is not None
        max_seq_length = _max_seq_length(source.max_seq_length, config, processor, is_pair=is_pair)
    labels, encoded = _encode_labels(read, source, task)
    texts = {} if is_image else {name: part.content for name, part in read.items()}
    rows: dict[str, Any] = {
        name: ImageDataset(part.content, encoded[name], normalisation.mean, normalisation.std)
        if is_image
        else tokenize(part.content, encoded[name], processor, max_seq_length=max_seq_length)
        for name, part in read.items()
    }
    if measured_on and not rows.keys() & set(measured_on):
        kept, held_out = _hold_out(labels, encoded["train"], source.validation_share, seed)
        for parts in filter(None, (rows, texts)):
            whole = parts["train"]
            parts |= {"train": whole.subset(kept), "validation": whole.subset(held_out)}
    if is_image:
        rows["train"].augmentation = augmentation_of(
            source.augmentation, rows["train"].pixels.shape[1:], seed=seed
        )
    lengths = np.concatenate([part.lengths for part in rows.values()])
    notes = [note for part in read.values() for note in part.notes]
    if max_seq_length and (num_long := int((lengths >= max_seq_length).sum())):
        notes.append(
            f"rows: {num_long:,} of the {len(lengths):,} have {max_seq_length} tokens or more and "
            "end there (`max_seq_length`)"
        )
    joined = [text for part in texts.values() for text in part.joined()]
    if num_empty := sum(not text.strip() for text in joined):
        notes.append(f"rows: {num_empty:,} of the {len(joined):,} have no text, only a label")
    if task.problem_type is None and labels.problem_type == "single_label_classification":
        train = read["train"]
        notes += describe_guess(
            train.labels or [], description=train.description, is_typed=train.is_typed
        )
    return Splits(rows, texts, labels, config, processor, max_seq_length, tuple(notes))


def _max_seq_length(asked: int, config: PreTrainedConfig, tokenizer: Any, *, is_pair: bool) -> int:
    """Return the tokens of a row, in which each text keeps at least one.

    Where nothing is asked for, it is no more than the tokenizer's `model_max_length`: later
    positions may be untrained.
    """
    shortest = tokenizer.num_special_tokens_to_add(pair=is_pair) + 1 + is_pair
    longest = longest_row(config, tokenizer)
    max_seq_length = asked or min(_DEFAULT_LENGTH, longest, tokenizer.model_max_length)
    if not shortest <= max_seq_length <= longest:
        raise InputError(
            f"`max_seq_length` is {asked} but must lie in {shortest}..{longest} for this model and "
            + ("pairs of texts" if is_pair else "single texts"),
            advice="change `max_seq_length`",
            parameter="max_seq_length",
            value=asked,
            allowed=f"in {shortest}..{longest}",
        )
    return max_seq_length


def _encode_labels(
    read: dict[str, LabelledRows], source: LabelledSource, task: Task
) -> tuple[LabelSpace, dict[str, NDArray[Any] | None]]:
    """Return what the training labels mean, and the labels of every split; None where hidden."""
    for name, part in read.items():
        if name != "test" and all(map(is_missing, part.labels or [None])):
            raise InputError(
                f"{part.description} has no labels",
                advice="change `label_column`, or divide a folder of images into a subfolder for "
                "each of its classes, two at least",
            )
    train = read["train"]
    labels = find_labels(
        train.labels or [],
        task,
        description=train.description,
        names=source.label_names or train.class_names or task.label_names,
        is_typed=train.is_typed,
        are_class_numbers=train.class_names is not None,
    )
    if labels.problem_type == "regression" and source.label_names:
        raise InputError(
            "regression has no classes to be named",
            advice="leave out `label_names` or change `task`",
        )
    encoded: dict[str, NDArray[Any] | None] = {}
    for name, part in read.items():
        if part.labels is None or (name == "test" and _are_hidden(part.labels, labels)):
            encoded[name] = None
        else:
            renumbered = _renumbered(part, train)
            encoded[name] = labels.encode(renumbered, description=part.description)
    return labels, encoded


def _are_hidden(test_labels: list[Any], labels: LabelSpace) -> bool:
    """Return whether no test row has a label: all are empty, or -1 as in GLUE's test splits."""
    values = [tidy(label) for label in test_labels]
    has_such_class = -1 in labels.numbers or "-1" in labels.numbers
    return all(map(is_missing, values)) or (
        all(as_number(value) == -1 for value in values) and not has_such_class
    )


def _renumbered(part: LabelledRows, train: LabelledRows) -> list[Any]:
    """Return labels by the class numbers of the training rows: image folders have their own."""
    theirs, ours = part.class_names, train.class_names
    if theirs is None or ours is None or theirs == ours:
        return part.labels or []
    numbers = {name: number for number, name in enumerate(ours)}

    def renumber(label: Any) -> Any:
        if isinstance(label, list):
            return [renumber(member) for member in label]
        if not isinstance(label, int) or not 0 <= label < len(theirs):
            return label
        name = theirs[label]
        if name not in numbers:  # its name may be a number, which would be taken for another class
            raise InputError(
                f"{part.description} has the class {name!r}, which is not among those of the "
                f"training data ({', '.join(map(repr, ours[:_NAMED_CLASSES]))})",
                advice="leave it out, or change `label_column`",
            )
        return numbers[name]

    return [renumber(label) for label in part.labels or []]


def _hold_out(
    labels: LabelSpace, encoded: NDArray[Any] | None, share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the sorted places of the rows to keep and of those to hold out, of each class alike.

    A class keeps a row at least.
    """
    assert encoded is not None
    is_held_out = np.zeros(len(encoded), dtype=np.bool_)
    groups = [np.arange(len(encoded))]
    if labels.problem_type == "single_label_classification":
        groups = [np.flatnonzero(encoded == value) for value in np.unique(encoded)]
    for number, members in enumerate(groups):
        count = min(round(share * len(members)), len(members) - 1)
        is_held_out[members[permutation(len(members), seed, Purpose.SPLIT, number)[:count]]] = True
    if not is_held_out.any():
        raise InputError(
            f"a share of {share:g} of {len(encoded)} training rows leaves none to validate on, "
            "because each class keeps a row to learn from",
            advice="pass `validation_file` or a larger `validation_share`",
        )
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


def overlap_with_training(splits: Splits) -> dict[str, dict[str, int]]:
    """Return of every other split the number of `rows`, and of those `also_training_rows`.

    Texts are the same if they are equal letter for letter, pairs if both texts are, images if all
    pixels are, as the model's processor resized them; labels do not count.
    """
    trained = set(row_digests(splits, "train"))
    overlap = {}
    for name in splits.rows:
        if name != "train":
            is_trained = [row in trained for row in row_digests(splits, name)]
            overlap[name] = {"rows": len(is_trained), "also_training_rows": sum(is_trained)}
    return overlap


def describe_overlap(splits: Splits, overlap: dict[str, dict[str, int]]) -> str | None:
    """Return a warning that scores on some rows are partly memory; None without overlap."""
    pairs = any(texts.second is not None for texts in splits.texts.values())
    kind = ("text pairs" if pairs else "texts") if splits.texts else "images"
    found = [
        f"{part['also_training_rows']:,} of the {part['rows']:,} {name} {kind}"
        for name, part in overlap.items()
        if part["also_training_rows"]
    ]
    if not found:
        return None
    return (
        f"{' and '.join(found)} are training rows too, exactly the same: scores on them are partly "
        "memory; leave them out of one of the two for a score on unseen rows."
    )


def labelled_rows_sha256(splits: Splits, name: str) -> str:
    """Return a digest of the rows of a split in their order, their labels and the class names."""
    labels = splits.rows[name].labels
    sha256 = hashlib.sha256(json.dumps(splits.labels.names).encode())
    sha256.update(b"" if labels is None else labels.tobytes())
    for row in row_digests(splits, name):
        sha256.update(row)
    return sha256.hexdigest()


def row_digests(splits: Splits, name: str) -> Iterator[bytes]:
    """Yield a digest of what each row of a split says; labels do not count."""
    rows = splits.rows[name]
    if isinstance(rows, ImageDataset):
        # Without their shape, which all images of a model share.
        contents = (image.tobytes() for image in rows.pixels)
    else:
        first, second = splits.texts[name].first, splits.texts[name].second
        # As JSON, so that ("a b", "c") and ("a", "b c") differ.
        pairs = zip(first, second or first, strict=True)
        contents = (json.dumps(row).encode() for row in pairs)
    for content in contents:
        yield hashlib.blake2b(content, digest_size=_DIGEST_SIZE).digest()
