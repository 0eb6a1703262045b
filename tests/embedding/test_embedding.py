"""What a model is said to make of a text or an image is what it makes of that one alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from downstream_models import make_image_model, make_text_model
from PIL import Image
from runs import WORDS
from small_encoders import small_config
from tokenizer_kinds import KINDS
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from bert_pretrain.embedding import texts as text_module
from bert_pretrain.embedding.loading import EmbeddingRule, load_embedder
from bert_pretrain.errors import InputError
from bert_pretrain.models.embedding import Pooling, embed_batches, pool, weights_digest

TOLERANCE = {"rtol": 1e-4, "atol": 2e-6}  # float32; sums of another order


def make_texts(count: int, *, longest: int = 40, seed: int = 0) -> list[str]:
    """Return texts of very different lengths, also of none."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(0, longest, count)
    return [" ".join(generator.choice(WORDS, length)) for length in lengths]


@torch.no_grad()
def one_by_one(
    folder: str, texts: list[str], *, pooling: str, max_length: int, with_types: bool = True
) -> np.ndarray:
    """Embed as one does with transformers alone: each text by itself, without any padding."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    found = []
    for text in texts:
        inputs = tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")
        if not with_types:
            inputs.pop("token_type_ids", None)
        states = model(**inputs).last_hidden_state[0]
        found.append(states.mean(dim=0) if pooling == "mean" else states[0])
    return torch.stack(found).numpy()


def test_pooling_is_over_real_tokens_whatever_padding_holds() -> None:
    states = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
    states[0, 4], states[1, 1] = float("nan"), float("inf")
    rows = [states[0, :3], states[1, :1], states[2]]
    assert torch.allclose(pool(states, mask, "mean"), torch.stack([row.mean(0) for row in rows]))
    assert torch.equal(pool(states, mask, "cls"), torch.stack([row[0] for row in rows]))


def test_batches_are_asked_for_one_after_the_other_and_nothing_keeps_a_graph() -> None:
    asked: list[int] = []
    weight = torch.ones(3, requires_grad=True)

    def batches() -> Any:
        for size in (2, 1):
            asked.append(size)
            yield torch.ones(size, 3, dtype=torch.bfloat16)

    def forward(batch: Tensor) -> Tensor:
        assert sum(asked) == (2 if len(batch) == 2 else 3)
        return batch * weight.bfloat16()

    found = embed_batches(forward, batches())
    assert found.shape == (3, 3) and found.dtype == torch.float32 and not found.requires_grad


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_texts_in_sorted_batches_are_each_texts_own_in_their_order(
    tmp_path: Path, pooling: Pooling
) -> None:
    model = make_text_model(tmp_path / "model")
    texts = make_texts(37)
    embedder = load_embedder(model, EmbeddingRule(pooling=pooling, max_seq_length=24))
    expected = one_by_one(model, texts, pooling=pooling, max_length=24)
    for batch_size in (1, 5, 64):
        found = embedder.embed(texts, batch_size=batch_size)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, **TOLERANCE)


@pytest.mark.parametrize(
    "kind", ["BERT in a DistilBERT", "RoBERTa", "ModernBERT", "DeBERTa", "MPNet", "XLNet"]
)
def test_other_models_and_tokenizers_give_each_texts_own(tmp_path: Path, kind: str) -> None:
    tokenizer = KINDS[kind].build()
    if kind == "BERT in a DistilBERT":
        tokenizer.padding_side = "left"  # with which transformers would move the positions
    config = small_config(KINDS[kind].model_type, vocab_size=1024)
    config.pad_token_id = tokenizer.pad_token_id
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    texts = ["the mask", "Write a row of words: the pad, the mask.", "a"]
    found = load_embedder(str(tmp_path)).embed(texts, batch_size=3)
    expected = one_by_one(
        str(tmp_path),
        texts,
        pooling="mean",
        max_length=60,
        with_types=KINDS[kind].tells_types,
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_windows_end_by_rows_or_letters_and_say_what_was_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_module, "ROWS_OF_A_WINDOW", 4)
    monkeypatch.setattr(text_module, "_LETTERS_OF_A_WINDOW", 40)
    embedder = load_embedder(make_text_model(tmp_path / "model"), EmbeddingRule(max_seq_length=5))
    texts = ["the", "a", "the list of a value", "a", "of", "value " * 8, "a b c", "a b c d"]
    rows = (embedder.row_of(number, text) for number, text in enumerate(texts))
    windows = list(embedder.windows(rows, batch_size=2, on_bad="error"))
    assert [window.num_read for window in windows] == [4, 2, 2]
    # [CLS] and [SEP] leave three words.
    assert [window.num_cut for window in windows] == [1, 1, 1]
    in_windows = np.concatenate([window.embeddings for window in windows])
    np.testing.assert_allclose(in_windows, embedder.embed(texts), **TOLERANCE)


def test_special_tokens_in_a_text_are_letters(tmp_path: Path) -> None:
    embedder = load_embedder(make_text_model(tmp_path / "model"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    literal = tokenizer("a [SEP] [MASK]", split_special_tokens=True)["input_ids"]
    found = embedder._encode([embedder.row_of(0, "a [SEP] [MASK]")]).input_ids[0].tolist()
    assert found == literal


def test_bfloat16_is_near_float32_and_another_identity(tmp_path: Path) -> None:
    model, texts = make_text_model(tmp_path / "model"), make_texts(9)
    exact, coarse = (
        load_embedder(model, EmbeddingRule(mixed_precision=name)) for name in ("no", "bf16")
    )
    found, expected = coarse.embed(texts), exact.embed(texts)
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    assert not np.array_equal(found, expected)
    assert exact.identity != coarse.identity


@pytest.mark.parametrize("architecture", ["vit", "convnextv2"])
def test_images_are_those_of_the_models_own_processor_and_its_classifiers_input(
    tmp_path: Path, architecture: str
) -> None:
    """Sides differ, the processor's images are not square, and a ConvNextV2 has no [CLS]."""
    folder = tmp_path / "model"
    size = {"height": 8, "width": 12}
    torch.manual_seed(0)
    if architecture == "vit":
        config = ViTConfig(
            image_size=(8, 12),
            patch_size=4,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=48,
        )
        ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    else:
        config = ConvNextV2Config(hidden_sizes=[16, 32], depths=[1, 1], num_stages=2, patch_size=2)
        ConvNextV2ForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil(size=size).save_pretrained(folder)
    generator = np.random.default_rng(0)
    paths = []
    for number, shape in enumerate([(9, 30, 3), (20, 12, 3), (8, 8), (14, 14, 4)]):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(generator.integers(256, size=shape).astype(np.uint8)).save(paths[-1])
    model, processor = AutoModel.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    expected = []
    for path in paths:
        image = Image.open(path)
        if image.mode == "RGBA":  # transparent pixels lie on white, as on the cards
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        inputs = processor(image.convert("RGB"), return_tensors="pt")
        with torch.no_grad():
            output = model.eval()(**inputs)
        is_vit = architecture == "vit"
        expected.append(output.last_hidden_state[0, 0] if is_vit else output.pooler_output[0])
    embedder = load_embedder(str(folder))
    for batch_size in (1, 3, 64):
        found = embedder.embed(paths, batch_size=batch_size)
        np.testing.assert_allclose(found, torch.stack(expected).numpy(), **TOLERANCE)


def test_images_that_a_processor_leaves_at_different_sizes_go_through_apart(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "model"
    torch.manual_seed(0)
    config = ConvNextV2Config(hidden_sizes=[16, 32], depths=[1, 1], num_stages=2, patch_size=2)
    ConvNextV2ForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil(do_resize=False).save_pretrained(folder)
    paths = []
    for number, side in enumerate((8, 12, 8, 10, 12)):
        pixels = np.random.default_rng(number).integers(256, size=(side, 8, 3)).astype(np.uint8)
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(pixels).save(paths[-1])
    embedder = load_embedder(str(folder))
    together = embedder.embed(paths)
    np.testing.assert_allclose(together, embedder.embed(paths, batch_size=1), **TOLERANCE)


def test_a_digest_tells_one_changed_weight_and_no_other_place(tmp_path: Path) -> None:
    first = AutoModel.from_pretrained(make_text_model(tmp_path / "a"))
    second = AutoModel.from_pretrained(make_text_model(tmp_path / "b"))
    assert weights_digest(first) == weights_digest(second)
    with torch.no_grad():
        second.embeddings.word_embeddings.weight[5, 3] += 1e-6
    assert weights_digest(first) != weights_digest(second)


def test_an_untrained_pooler_is_no_part_of_the_model(tmp_path: Path) -> None:
    """A masked-LM checkpoint has none, and transformers would draw one anew at each start."""
    make_text_model(tmp_path / "model")
    from transformers import BertForMaskedLM

    BertForMaskedLM.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "model")
    first, second = (load_embedder(str(tmp_path / "model")) for _ in range(2))
    assert first.identity == second.identity


def test_of_a_run_the_final_model_or_the_newest_checkpoint_embeds(tmp_path: Path) -> None:
    for step in (20, 100):
        make_text_model(tmp_path / f"run/checkpoints/step-{step:06d}")
    assert load_embedder(str(tmp_path / "run")).name.endswith("step-000100")
    make_text_model(tmp_path / "run/final")
    assert load_embedder(str(tmp_path / "run")).name.endswith("final")


def test_what_a_model_was_trained_on_is_the_default_length(tmp_path: Path) -> None:
    folder = Path(make_text_model(tmp_path / "model"))
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"model_max_length": 24}))
    embedder = load_embedder(str(folder))
    assert embedder.identity["max_seq_length"] == 24 and not embedder.notes
    longer = load_embedder(str(folder), EmbeddingRule(max_seq_length=32))
    assert "model_max_length is 24" in longer.notes[0]


def test_rules_that_do_not_suit_a_model_are_refused(tmp_path: Path) -> None:
    image_model = make_image_model(tmp_path / "vit")
    with pytest.raises(InputError, match="`pooling` means nothing"):
        load_embedder(image_model, EmbeddingRule(pooling="cls"))
    text_model = make_text_model(tmp_path / "bert")
    for length in (2, 65):
        with pytest.raises(InputError, match=r"in 3\.\.64"):
            load_embedder(text_model, EmbeddingRule(max_seq_length=length))
    tokenizer = KINDS["T5"].build()
    tokenizer.save_pretrained(tmp_path / "bert")
    with pytest.raises(InputError, match="do not begin"):
        load_embedder(text_model, EmbeddingRule(pooling="cls"))


def test_embeddings_that_are_not_finite_name_their_row(tmp_path: Path) -> None:
    embedder = load_embedder(make_text_model(tmp_path / "model"))
    (value,) = embedder.tokenizer("value", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        embedder.model.embeddings.word_embeddings.weight[value] = float("nan")
    with pytest.raises(InputError, match=r"row 2 of the texts .* is not finite"):
        embedder.embed(["a list", "the list of names", "value"])
