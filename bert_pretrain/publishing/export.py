"""Exports: pretrained models in folders that stock transformers loads, and what cards say of them.

A text model's folder holds model and tokenizer; an image model's the plain encoder, its image
processor and, in the folder `pretraining`, the whole model, from which pretraining can continue.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Resampling
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ViTImageProcessorPil,
)

from bert_pretrain.data.atomic import atomic_folder
from bert_pretrain.models.image_encoder_config import InputSize, sides
from bert_pretrain.models.image_processor import PIXEL_RANGE, preparation_code
from bert_pretrain.models.positions import num_positions, position_table
from bert_pretrain.models.pretraining_model import PRETRAINING_FOLDER
from bert_pretrain.publishing.tokenizer_files import save_tokenizer

# Number of channels -> its name in prose, and Pillow's mode.
_CHANNELS = {1: ("one channel (grey)", "L"), 3: ("RGB", "RGB"), 4: ("RGBA", "RGBA")}
# Names of architectures in prose, where they differ from those of the classes.
_NAMES = {
    "Albert": "ALBERT",
    "Bert": "BERT",
    "DebertaV2": "DeBERTa-v2",
    "DistilBert": "DistilBERT",
    "Electra": "ELECTRA",
    "ModernBert": "ModernBERT",
    "Roberta": "RoBERTa",
    "XLMRoberta": "XLM-RoBERTa",
}
_IMAGE_MODELS = {
    "image_autoencoder": "the encoder of an autoencoder",
    "vit_mae": "the encoder of a masked autoencoder",
    "image_contrastive": "an encoder that tells images apart by two views of each",
}


def export_text_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path
) -> None:
    """Write or replace the export folder of a text model, whole or not at all."""
    with atomic_folder(directory) as aside:
        model.save_pretrained(aside)
        save_tokenizer(tokenizer, aside)


def trained_length(
    tokenizer: PreTrainedTokenizerBase,
    max_seq_length: int,
    *,
    is_from_scratch: bool,
    max_positions: int | None = None,
) -> int:
    """Return the number of tokens at which users of a text model should truncate.

    From scratch it is that of the longest row trained on, since later positions are untrained. A
    model that is continued may read longer ones, up to its number of positions before that.
    """
    if is_from_scratch:
        return max_seq_length
    longest = int(min(tokenizer.model_max_length, max_positions or tokenizer.model_max_length))
    return max(max_seq_length, longest)


def text_card_fields(
    model: PreTrainedModel,
    *,
    with_nsp: bool,
    language: str | None,
    max_seq_length: int,
    is_from_scratch: bool,
    is_of_order: bool = False,
) -> dict[str, Any]:
    """Return what the model card says of a text model; see `publishing.model_card`.

    Args:
        model: the trained model.
        with_nsp: whether the next-sentence head was trained.
        language: code of the text's language; None = not stated.
        max_seq_length: tokens of the longest row that it was trained on.
        is_from_scratch: whether it began with random weights.
        is_of_order: whether that head was trained to tell the order of neighbours instead.
    """
    config = model.config
    architecture = re.sub("For[A-Z].*", "", type(model).__name__)
    pairs = "sentence-order prediction" if is_of_order else "next-sentence prediction"
    learnt = "masked-language modelling"
    if with_nsp:
        learnt += f" and {pairs}"
    elif architecture == "Bert":  # whose class has both heads
        learnt += " (its next-sentence head is untrained)"
    return {
        "is_text": True,
        "with_nsp": with_nsp,
        "is_of_order": is_of_order,
        "language": language,
        "is_english": (language or "").lower().split("-")[0] in ("en", "eng"),
        "pipeline_tag": "fill-mask",
        "relationship_logits": "sop_logits"
        if architecture == "Albert"
        else "seq_relationship_logits",
        "tags": [
            config.model_type,
            "masked-lm",
            *([pairs.replace(" ", "-")] if with_nsp else []),
        ],
        "summary": f"{_with_article(_NAMES.get(architecture, architecture))} encoder "
        f"({config.num_hidden_layers} layers, width "
        f"{config.hidden_size}, {config.vocab_size:,} tokens in its vocabulary, "
        f"{model.num_parameters() / 1e6:.1f} M parameters) pretrained by {learnt}.",
        "limits": [
            "It knows the language and the topics of its training text, with whatever that text "
            "gets wrong or leaves out; other text, and people and groups of people in particular, "
            "it may represent badly.",
            _length_limit(model, max_seq_length, is_from_scratch=is_from_scratch),
            "It writes no text: it is for classifying, tagging and comparing text after "
            "fine-tuning.",
            *(
                [
                    "Its next-sentence head was trained on order alone: which of two neighbouring "
                    "passages of a document comes first. It says nothing of whether they belong "
                    "together."
                ]
                if with_nsp and is_of_order
                else []
            ),
            "The numbers above are of held-out text of the same source. What it is worth for a "
            "task, only that task's own data can tell.",
        ],
    }


def _with_article(name: str) -> str:
    begins_with_vowel = name[0] in "AEIO" or name.startswith(("XLM", "MPNet"))  # as spoken
    return f"{'An' if begins_with_vowel else 'A'} {name}"


def _length_limit(model: PreTrainedModel, max_seq_length: int, *, is_from_scratch: bool) -> str:
    """Say how long a text may be, and which positions were trained."""
    rows = f"rows of up to {max_seq_length} tokens"
    trained = f"It was trained {'' if is_from_scratch else 'further '}on {rows}"
    table = position_table(model)
    if table is None:  # positions are relative: nothing is untrained, but much may be unlike
        return f"{trained}; what it makes of longer ones was not measured."
    places = num_positions(model)
    if not is_from_scratch:
        return f"{trained}; its position table has {places} places and it reads no longer row."
    if max_seq_length == places:
        return f"{trained} and reads no longer row."
    return (
        f"{trained}; its position table has {places} places, those from {max_seq_length} on "
        "(counted from 0) are untrained. Cut longer text there: `model_max_length` of the "
        "tokenizer does, wherever it truncates."
    )


def image_processor(
    *,
    image_size: InputSize,
    mean: Sequence[float],
    std: Sequence[float],
    pixel_range: Sequence[float] | None = None,
) -> ViTImageProcessorPil:
    """Return the image processor that prepares a PIL image as an `ImageCorpus` and its loader do.

    An encoder of three channels takes any image, as RGB, on white where it is transparent. For one
    or four channels transformers has no such conversion: pass images of mode L or RGBA.

    Args:
        image_size: of the encoder's input, pixels. To a square the centre of an image is cropped,
            its shorter side resized; to a rectangle the whole image is resized.
        mean: of each of 1, 3 or 4 channels, for pixels in [0, 1].
        std: as `mean`.
        pixel_range: grey levels of images of more than 8 bits that become black and white, kept for
            whoever prepares images for the encoder; None = there were no such images.
    """
    height, width = sides(image_size)
    is_square = height == width
    return ViTImageProcessorPil(
        do_convert_rgb=len(mean) == 3,
        do_resize=True,
        size={"shortest_edge": height} if is_square else {"height": height, "width": width},
        resample=Resampling.BICUBIC,
        do_center_crop=is_square,
        crop_size={"height": height, "width": width},
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=[float(value) for value in mean],
        image_std=[float(value) for value in std],
        **({} if pixel_range is None else {PIXEL_RANGE: list(pixel_range)}),
    )


def export_image_model(
    model: PreTrainedModel, processor: ViTImageProcessorPil, directory: Path
) -> None:
    """Write or replace the export folder of an image model, whole or not at all."""
    # The encoder without its empty classification head: whoever loads a classifier is then told
    # that the head, and nothing else, is missing.
    base = model.plain_encoder().base_model
    config = _config(base)
    # Pretraining's `num_labels` of 0 would give a classifier no labels at all.
    config.num_labels = PreTrainedConfig().num_labels
    with atomic_folder(directory) as aside:
        base.save_pretrained(aside)
        config.save_pretrained(aside)
        processor.save_pretrained(aside)
        model.save_pretrained(aside / PRETRAINING_FOLDER)


def write_config(model: PreTrainedModel, processor: Any, directory: Path) -> None:
    """Write configuration and tokenizer or image processor into an existing folder."""
    _config(model).save_pretrained(directory)
    if isinstance(processor, PreTrainedTokenizerBase):
        save_tokenizer(processor, directory)
    else:
        processor.save_pretrained(directory)


def image_card_fields(model: PreTrainedModel, processor: ViTImageProcessorPil) -> dict[str, Any]:
    """Return what the model card says of an image encoder; see `publishing.model_card`."""
    base = model.plain_encoder().base_model
    channels, mode = _CHANNELS[len(processor.image_mean)]
    height, width = processor.crop_size["height"], processor.crop_size["width"]
    size = f"{height} x {width}"
    return {
        "is_text": False,
        "pipeline_tag": "image-feature-extraction",
        "tags": [base.config.model_type, "self-supervised"],
        "summary": f"An image encoder ({type(base).__name__}, {base.num_parameters() / 1e6:.1f} M "
        f"parameters) for {size} pixels and {channels}, pretrained without labels as "
        f"{_IMAGE_MODELS[model.config.model_type]}.",
        "mode": mode,
        "preparation_code": preparation_code(mode, processor).rstrip(),
        "width_and_height": f"{width}, {height}",
        "has_untrained_pooler": getattr(base, "pooler", 0) is None,
        "pretraining_folder": PRETRAINING_FOLDER,
        "pretraining_class": type(model).__name__,
        "limits": [
            "It knows images like those it was trained on, with whatever they show too much or too "
            "little of; people and groups of people in particular it may represent badly.",
            f"It was trained at {size} pixels; larger images are scaled down to that, and "
            "details are lost.",
            "The numbers above are of held-out images of the same source. What it is worth for a "
            "task, only that task's own data can tell.",
        ],
    }


def _config(model: PreTrainedModel) -> PreTrainedConfig:
    """Return a copy of a model's configuration that names the class to load it with."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    return config
