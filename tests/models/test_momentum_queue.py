"""The queue of keys: first in, first out, by a copy that follows the model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from bert_pretrain.models.image_heads import ContrastiveModel, build_contrastive
from bert_pretrain.models.momentum_queue import MomentumQueue


class Encoder(nn.Module):
    """Of images of one value, called as transformers' classifiers are."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 2)

    def forward(self, pixel_values: torch.Tensor) -> Any:
        return SimpleNamespace(logits=self.linear(pixel_values.flatten(1)))


def build(queue_size: int, name_or_path: Path | None = None) -> ContrastiveModel:
    torch.manual_seed(0)
    return build_contrastive(
        projection_dim=4,
        queue_size=queue_size,
        config_name="convnextv2-mini",
        model_name_or_path=None if name_or_path is None else str(name_or_path),
        image_size=8,
        num_channels=1,
        dropout=0.0,
    )


def small_queue(size: int) -> tuple[MomentumQueue, Any, Any]:
    encoder, projection = Encoder(), nn.Linear(2, 3)
    return MomentumQueue(encoder, projection, size=size, width=3), encoder, projection  # type: ignore[arg-type]


def test_keys_leave_the_queue_in_the_order_in_which_they_came() -> None:
    queue, encoder, projection = small_queue(5)
    assert queue.ids.tolist() == [-1] * 5
    expected: list[int] = []
    for update, count in enumerate((2, 2, 3, 7)):
        ids = torch.arange(count) + 10 * update
        queue.hold(torch.full((count, 3), -1.0), ids)  # a trial, which no update follows
        queue.hold(ids[:, None].expand(-1, 3).float(), ids)
        queue.follow(encoder, projection, momentum=0.5)
        expected = (ids.tolist() + expected)[:5]
        assert queue.ids.tolist() == expected + [-1] * (5 - len(expected))
        assert queue.keys[: len(expected), 0].tolist() == expected
    queue.clear()
    assert queue.ids.tolist() == [-1] * 5


def test_the_copy_follows_the_weights_with_its_momentum_and_has_no_gradient() -> None:
    queue, encoder, projection = small_queue(2)
    first = [parameter.detach().clone() for parameter in queue.parameters()]
    trained = [*encoder.parameters(), *projection.parameters()]
    assert all(map(torch.equal, first, trained))
    for number in (1, 2):
        for parameter in trained:
            nn.init.constant_(parameter, number)
        queue.hold(torch.ones(1, 3), torch.ones(1, dtype=torch.int64))
        queue.follow(encoder, projection, momentum=0.9)
    for found, begun in zip(queue.parameters(), first, strict=True):
        torch.testing.assert_close(found, 0.9 * (0.9 * begun + 0.1) + 0.2)
        assert not found.requires_grad
    assert not queue(torch.ones(4, 1, 1, 1)).requires_grad


def test_a_new_copy_embeds_as_the_model_does_and_is_saved_with_it(tmp_path: Path) -> None:
    model = build(queue_size=6).eval()
    images = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    out = model(pixel_values=images, key_pixel_values=images)
    assert torch.equal(out.key_projections, out.projections)
    assert not out.key_projections.requires_grad
    model.queue.hold(out.key_projections, torch.tensor([4, 5, 6]))
    with torch.no_grad():
        for parameter in model.projection.parameters():
            parameter.add_(1.0)
    model.queue.follow(model.encoder, model.projection, momentum=0.75)
    model.save_pretrained(tmp_path)
    loaded = ContrastiveModel.from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert loaded.queue.ids.tolist() == [4, 5, 6, -1, -1, -1]


def test_without_a_size_there_is_no_queue_and_the_weights_are_the_same() -> None:
    plain, queued = build(queue_size=0), build(queue_size=3)
    assert plain.queue is None
    for name, value in plain.state_dict().items():
        assert torch.equal(value, queued.state_dict()[name]), name


@pytest.mark.parametrize("queue_size", [2, 6])
def test_continued_weights_come_without_their_keys(tmp_path: Path, queue_size: int) -> None:
    model = build(queue_size=queue_size)
    model.queue.hold(torch.ones(2, 4), torch.tensor([1, 2]))
    model.queue.follow(model.encoder, model.projection, momentum=0.5)
    model.save_pretrained(tmp_path)
    continued = build(queue_size, tmp_path)
    assert continued.queue.ids.tolist() == [-1] * queue_size
    assert not any(parameter.requires_grad for parameter in continued.queue.parameters())
    for found, expected in zip(continued.parameters(), model.parameters(), strict=True):
        assert torch.equal(found, expected)
