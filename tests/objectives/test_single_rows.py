"""Claims about rows without a pair among pairs: nothing is asked of them, however they lie."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from trainers import bert_objective

from bert_pretrain.data.stream import Batch
from bert_pretrain.objectives.text import TextObjective, pair_baseline
from bert_pretrain.training.metrics import RunningSums


@pytest.fixture(scope="module")
def objective() -> TextObjective:
    torch.set_num_threads(1)
    return bert_objective(num_short=60)


def batches(objective: TextObjective, sizes: list[int]) -> list[Batch]:
    """Return eight rows, of which the first three are pairs, in batches of some sizes."""
    plan = objective.training.plan(0)
    labels = plan.next_sentence_label
    pairs, single = np.flatnonzero(labels != -100)[:3], np.flatnonzero(labels == -100)[:5]
    rows, bounds = np.concatenate([pairs, single]), np.cumsum([0, *sizes])
    chunks = [rows[low:high] for low, high in itertools.pairwise(bounds.tolist())]
    collate = objective.training.collator.collate
    return [collate([(0, chunk, plan.take(chunk))]) for chunk in chunks]


def learnt(
    objective: TextObjective, model: Any, made: list[Batch]
) -> tuple[dict[str, float], torch.Tensor]:
    """Return the means and the gradient of an update over some batches, as the trainer makes it."""
    targets = [objective.target_counts(batch) for batch in made]
    totals = {name: max(1, sum(counts[name] for counts in targets)) for name in targets[0]}
    sums = RunningSums(torch.device("cpu"))
    model.zero_grad()
    for batch, counts in zip(made, targets, strict=True):
        terms = objective.loss_terms(model, batch)
        torch.stack([term.sum / totals[name] for name, term in terms.items()]).sum().backward()
        sums.add(terms, counts)
    # Distributed training waits for the gradient of every parameter, in every pass.
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert all(gradient is not None for gradient in gradients)
    return sums.total().means(), torch.cat([gradient.flatten() for gradient in gradients])


def test_any_division_into_batches_has_the_losses_and_the_gradient_of_one(
    objective: TextObjective,
) -> None:
    model = objective.build_model().eval()
    whole = batches(objective, [8])
    assert objective.target_counts(whole[0])["nsp"] == 3
    expected, gradient = learnt(objective, model, whole)
    for sizes in ([3, 5], [1] * 8, [2, 2, 4]):
        found, other = learnt(objective, model, batches(objective, sizes))
        assert found == pytest.approx(expected, rel=1e-5)
        # float32 sums of some hundred terms in another order
        assert torch.allclose(other, gradient, rtol=1e-4, atol=1e-6)


def test_a_batch_without_a_pair_has_a_gradient_of_zero_for_their_head(
    objective: TextObjective,
) -> None:
    model = objective.build_model().eval()
    single = batches(objective, [3, 5])[1]
    assert objective.target_counts(single)["nsp"] == 0
    means, gradient = learnt(objective, model, [single])
    assert torch.isfinite(gradient).all() and "nsp_loss" not in means and means["mlm_loss"] > 0
    assert not model.cls.seq_relationship.weight.grad.any()
    assert model.bert.embeddings.word_embeddings.weight.grad.any()


def test_what_is_frozen_does_not_depend_on_whether_the_first_held_out_row_is_a_pair() -> None:
    trained = []
    for is_pair in (True, False):
        objective = bert_objective(num_short=60)
        labels = objective.held_out.plan.next_sentence_label
        rows = np.flatnonzero((labels != -100) == is_pair)
        object.__setattr__(objective.held_out, "rows", rows)
        model = objective.build_model()
        trained.append([name for name, p in model.named_parameters() if p.requires_grad])
    assert trained[0] == trained[1] and any("seq_relationship" in name for name in trained[0])


def test_the_baseline_of_pairs_is_that_of_the_pairs_alone(objective: TextObjective) -> None:
    plan = objective.training.plan(0)
    rows = np.arange(len(plan))
    random, following = (int((plan.next_sentence_label == label).sum()) for label in (1, 0))
    share = max(random, following) / (random + following)
    assert pair_baseline(plan, rows) == {"majority_nsp_accuracy": share}
    assert pair_baseline(plan, np.flatnonzero(plan.next_sentence_label == -100)) == {}
