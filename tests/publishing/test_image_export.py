"""Exports load with stock transformers, without this package, and give our tensors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
import pytest
import torch
from accelerate import Accelerator
from records import metrics_rows, run_record
from runs import environment
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel

from bert_pretrain.images.corpus import open_images
from bert_pretrain.models.image_encoder import embed
from bert_pretrain.models.image_heads import (
    ContrastiveModel,
    ImageAutoencoder,
    build_autoencoder,
    build_contrastive,
)
from bert_pretrain.models.image_processor import read_pixel_range
from bert_pretrain.models.masked_autoencoder import MaskedAutoencoder, build_masked_autoencoder
from bert_pretrain.publishing.export import (
    export_image_model,
    image_card_fields,
    image_processor,
    write_config,
)
from bert_pretrain.publishing.model_card import model_card

pytestmark = pytest.mark.usefixtures("stock_attention")

SIZE = 16
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
MEAN = {1: [0.3], 3: [0.1, 0.5, 0.7], 4: [0.1, 0.5, 0.7, 0.9]}
STD = {1: [0.25], 3: [0.2, 0.3, 0.4], 4: [0.2, 0.3, 0.4, 0.1]}

LOADER = """
import sys
sys.modules["bert_pretrain"] = None  # any import of it fails
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline
from transformers.utils import logging
logging.set_verbosity_error()
results = {}
for path in sys.argv[2:]:
    picture = Image.open(path + "/picture.png")
    inputs = AutoImageProcessor.from_pretrained(path)(picture, return_tensors="pt")
    encoder, loading = AutoModel.from_pretrained(path, output_loading_info=True)
    assert not loading["unexpected_keys"] and not loading["mismatched_keys"], loading
    assert all(key.startswith("pooler") for key in loading["missing_keys"]), loading
    classifier, loading = AutoModelForImageClassification.from_pretrained(
        path, num_labels=7, output_loading_info=True
    )
    assert set(loading["missing_keys"]) == {"classifier.weight", "classifier.bias"}, loading
    assert not loading["unexpected_keys"] and not loading["mismatched_keys"], loading
    assert AutoModelForImageClassification.from_pretrained(path).config.num_labels == 2
    fed = []
    classifier.classifier.register_forward_pre_hook(lambda _, inputs: fed.append(inputs[0]))
    with torch.no_grad():
        assert classifier.eval()(**inputs).logits.shape == (1, 7)
        hidden = encoder.eval()(**inputs).last_hidden_state
    assert type(encoder).__module__.startswith("transformers."), type(encoder)
    result = {"pixel_values": inputs["pixel_values"], "embedding": fed[0]}
    result["model_type"] = encoder.config.model_type
    extractor = pipeline("image-feature-extraction", model=path)
    if picture.mode == "RGB":
        result["is_piped"] = torch.equal(extractor(picture, return_tensors=True), hidden)
    blocks = open(path + "/card.md").read().split("```python")[1:]
    code, *more = (block.split("```")[0] for block in blocks)
    assert 'path = "."' in code
    exec(code.replace('path = "."', f"path = {path!r}"), names := {})  # as the model card says
    assert names["embedding"].shape == fed[0].shape and names["classifier"].config.num_labels == 10
    if picture.mode == "L":
        exec(more[0], {"path": path}, names := {})
        result["is_piped"] = torch.equal(names["extractor"](picture, return_tensors=True), hidden)
    results[path] = result
torch.save(results, sys.argv[1])
"""


class Exported(NamedTuple):
    model: PreTrainedModel
    folder: Path
    num_channels: int


def build(kind: str, num_channels: int) -> PreTrainedModel:
    flags = {
        "model_name_or_path": None,
        "image_size": SIZE,
        "num_channels": num_channels,
        "dropout": 0.0,
    }
    if kind == "autoencoder":
        return build_autoencoder(config_name="vit-tiny", embedding_dim=6, **flags)
    if kind == "masked":
        return build_masked_autoencoder(config_name="vit-tiny", mask_ratio=0.75, **flags)
    return build_contrastive(config_name="convnextv2-mini", projection_dim=10, **flags)


CASES = [
    ("autoencoder", 1),
    ("autoencoder", 4),
    ("masked", 1),
    ("masked", 3),
    ("contrastive", 3),
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Exported]:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    found = {}
    for kind, num_channels in CASES:
        model = build(kind, num_channels).eval()
        folder = tmp_path_factory.mktemp("export") / "final"
        processor = image_processor(image_size=SIZE, mean=MEAN[num_channels], std=STD[num_channels])
        export_image_model(model, processor, folder)
        measured = metrics_rows(unit="images", reconstruction_loss=0.5)
        card = model_card(
            image_card_fields(model, processor),
            record=run_record(),
            data_card="",
            metrics_rows=measured,
            step=9,
            seconds=1.0,
        )
        card.save(folder / "card.md")
        picture(num_channels, 24, 31, rng).save(folder / "picture.png")
        found[kind, num_channels] = Exported(model, folder, num_channels)
    return found


@pytest.fixture(scope="module")
def loaded(
    exported: dict[tuple[str, int], Exported], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("loaded")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            LOADER,
            str(folder / "result.pt"),
            *(str(case.folder) for case in exported.values()),
        ],
        env={k: v for k, v in environment(folder).items() if k != "PYTHONPATH"},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    results: dict[str, dict] = torch.load(folder / "result.pt")
    return results


def picture(
    num_channels: int, height: int, width: int, rng: np.random.Generator
) -> PIL.Image.Image:
    shape = (height, width, num_channels)
    return PIL.Image.fromarray(
        rng.integers(0, 256, shape, dtype=np.uint8).squeeze(), mode=MODES[num_channels]
    )


def our_pixel_values(image: PIL.Image.Image, num_channels: int) -> torch.Tensor:
    """Resize the shorter side, crop the centre, divide and normalise, in steps of our own."""
    shorter = min(image.size)
    width, height = (SIZE * side // shorter for side in image.size)
    left, top = (width - SIZE) // 2, (height - SIZE) // 2
    image = image.resize((width, height), PIL.Image.Resampling.BICUBIC).crop(
        (left, top, left + SIZE, top + SIZE)
    )
    pixels = torch.from_numpy(np.array(image).reshape(SIZE, SIZE, num_channels)).permute(2, 0, 1)
    mean, std = (torch.tensor(values[num_channels]).view(-1, 1, 1) for values in (MEAN, STD))
    return ((pixels.float() / 255 - mean) / std)[None]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_stock_transformers_gives_our_tensors_without_our_package(
    exported: dict[tuple[str, int], Exported], loaded: dict[str, dict], case: tuple[str, int]
) -> None:
    model, folder, num_channels = exported[case]
    theirs = loaded[str(folder)]
    pixel_values = our_pixel_values(PIL.Image.open(folder / "picture.png"), num_channels)
    assert torch.equal(theirs["pixel_values"], pixel_values)
    with torch.no_grad():
        embedding = embed(model.plain_encoder(), pixel_values)
    # Our form of the patches rounds otherwise.
    torch.testing.assert_close(theirs["embedding"], embedding, rtol=0, atol=5e-6)
    assert theirs["model_type"] == ("convnextv2" if case[0] == "contrastive" else "vit")
    assert theirs.get("is_piped", num_channels == 4)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_whole_model_is_kept_and_loads_from_the_same_folder(
    exported: dict[tuple[str, int], Exported], case: tuple[str, int]
) -> None:
    model, folder, num_channels = exported[case]
    again, loading = type(model).from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values())
    assert all(
        torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items()
    )
    if isinstance(again, ImageAutoencoder):
        pixel_values = torch.rand(2, num_channels, SIZE, SIZE)
        assert torch.equal(
            again.decode(again.encode(pixel_values)), model(pixel_values).reconstruction
        )


def test_every_grey_level_is_normalised_to_the_bit() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(SIZE, SIZE)
    image = PIL.Image.fromarray(np.stack([levels, levels.T, levels[::-1]], axis=-1))
    processor = image_processor(image_size=SIZE, mean=MEAN[3], std=STD[3])
    assert torch.equal(
        processor(image, return_tensors="pt")["pixel_values"], our_pixel_values(image, 3)
    )


@pytest.mark.parametrize("num_channels", [1, 3])
def test_the_saved_processor_gives_the_tensor_that_evaluation_uses(
    tmp_path: Path, num_channels: int
) -> None:
    rng = np.random.default_rng(1)
    for name in range(12):
        picture(num_channels, *rng.integers(SIZE, 3 * SIZE, 2), rng).save(tmp_path / f"{name}.png")
    corpus = open_images(
        dataset_name=str(tmp_path),
        image_size=SIZE,
        validation_share=0.25,
        seed=0,
        cache_dir=tmp_path / "cache",
        show_progress=False,
    )
    processor = image_processor(image_size=SIZE, mean=corpus.mean.tolist(), std=corpus.std.tolist())
    processor.save_pretrained(tmp_path / "saved")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "saved")
    theirs = {
        processor(PIL.Image.open(path), return_tensors="pt")["pixel_values"].numpy().tobytes()
        for path in tmp_path.glob("*.png")
    }
    scaled = torch.from_numpy(np.array(corpus.pixels)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.from_numpy(values).view(1, -1, 1, 1) for values in (corpus.mean, corpus.std))
    ours = {row.contiguous().numpy().tobytes() for row in (scaled - mean) / std}
    assert ours == theirs and len(ours) == 12


def test_an_encoder_of_three_channels_takes_grey_and_transparent_images() -> None:
    processor = image_processor(image_size=SIZE, mean=MEAN[3], std=STD[3])
    rng = np.random.default_rng(2)
    grey = picture(1, SIZE, SIZE, rng)
    values = processor(grey, return_tensors="pt")["pixel_values"]
    assert torch.equal(values, our_pixel_values(grey.convert("RGB"), 3))
    clear = PIL.Image.new("RGBA", (SIZE, SIZE), (9, 9, 9, 0))
    values = processor(clear, return_tensors="pt")["pixel_values"]
    assert torch.equal(values, our_pixel_values(PIL.Image.new("RGB", (SIZE, SIZE), "white"), 3))


def test_the_range_of_grey_levels_is_saved_where_there_is_one(tmp_path: Path) -> None:
    options = {"image_size": SIZE, "mean": [0.5], "std": [0.5]}
    for pixel_range in (None, (0, 4095)):
        image_processor(**options, pixel_range=pixel_range).save_pretrained(tmp_path)
        found = read_pixel_range(AutoImageProcessor.from_pretrained(tmp_path))
        assert found == pixel_range
    image_processor(**options).save_pretrained(tmp_path)
    assert "pixel_range" not in (tmp_path / "preprocessor_config.json").read_text()


@pytest.mark.parametrize("kind", ["autoencoder", "masked", "contrastive"])
def test_a_checkpoint_of_the_loop_loads_by_its_class(tmp_path: Path, kind: str) -> None:
    model = build(kind, 1)
    accelerator = Accelerator(cpu=True)
    prepared = accelerator.prepare(model)
    accelerator.save_state(str(tmp_path))
    write_config(
        accelerator.unwrap_model(prepared),
        image_processor(image_size=SIZE, mean=[0.5], std=[0.5]),
        tmp_path,
    )
    again, loading = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values())
    assert all(
        torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items()
    )
    assert list(AutoImageProcessor.from_pretrained(tmp_path).image_mean) == [0.5]


def test_an_export_replaces_the_one_before(tmp_path: Path) -> None:
    processor = image_processor(image_size=SIZE, mean=[0.5], std=[0.5])
    export_image_model(build("masked", 1), processor, tmp_path / "final")
    (tmp_path / "final" / "stale").touch()
    export_image_model(build("autoencoder", 1), processor, tmp_path / "final")
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    assert sorted(path.name for path in (tmp_path / "final").iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "pretraining",
    ]


@pytest.mark.parametrize("kind", [MaskedAutoencoder, ContrastiveModel])
def test_the_card_names_the_class_and_what_to_read(
    exported: dict[tuple[str, int], Exported], kind: type[PreTrainedModel]
) -> None:
    for case in exported.values():
        if type(case.model) is kind:
            card = (case.folder / "card.md").read_text()
            assert f"`{kind.__name__}.from_pretrained(path)`" in card
            assert ("pooler_output" in card) == (kind is MaskedAutoencoder)
            assert ("GreyImageProcessor" in card) == (case.num_channels == 1)


def test_exporting_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = build("contrastive", 1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    export_image_model(
        model, image_processor(image_size=SIZE, mean=[0.5], std=[0.5]), tmp_path / "final"
    )
    assert model.training and model.plain_encoder().config.num_labels == 0
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    stock = AutoModelForImageClassification.from_pretrained(tmp_path / "final")
    assert stock.classifier.out_features == 2
