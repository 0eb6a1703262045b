"""The sparse model against transformers' own class, the oracle of every value here."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from trainers import attend_by_bounds
from transformers import BertConfig

from bert_pretrain.models.attention_kernels import KERNELS
from bert_pretrain.models.bert import BertForPreTraining
from bert_pretrain.models.flops import TextFlops
from bert_pretrain.models.text_encoder_config import named_config
from bert_pretrain.text import collator
from bert_pretrain.text.collator import computed_tokens

VOCAB, ROWS, LENGTH = 61, 6, 16


def small_config(**overrides) -> BertConfig:
    fields = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 32,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return BertConfig(**(fields | overrides))


def pair_of_models(**overrides) -> tuple[BertForPreTraining, transformers.BertForPreTraining]:
    torch.manual_seed(0)
    ours = BertForPreTraining(small_config(**overrides))
    stock = transformers.BertForPreTraining(small_config(**overrides))
    stock.load_state_dict(ours.state_dict())
    return ours, stock


def make_batch(*, padded: bool = True, seed: int = 0) -> dict[str, torch.Tensor]:
    """A batch with a different number of masked tokens in every row, none in the last."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(5, VOCAB, (ROWS, LENGTH), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    if padded:
        for row in range(ROWS):
            attention_mask[row, LENGTH - row :] = 0
    labels = torch.full_like(input_ids, -100)
    for row in range(ROWS - 1):
        columns = torch.randperm(LENGTH - row - 1, generator=generator)[: row + 1] + 1
        columns = columns[columns < LENGTH - row]
        labels[row, columns] = input_ids[row, columns]
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "token_type_ids": (torch.arange(LENGTH) > 7).long().expand(ROWS, -1).contiguous(),
        "labels": labels,
        "next_sentence_label": torch.randint(0, 2, (ROWS,), generator=generator),
    }


@pytest.fixture(autouse=True)
def no_padding_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounded up, the few tokens of the batches here would be all there are."""
    monkeypatch.setattr(collator, "MIN_TOKENS_MULTIPLE", 1)
    monkeypatch.setattr(collator, "READ_MULTIPLE", 8)  # unused slots must not count


def indexed(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Add what the collator says of a batch: the tokens to compute, and those a loss reads."""
    masked_positions = np.full((ROWS, ROWS), -1)
    for row, labels in enumerate(batch["labels"].tolist()):
        columns = [column for column, label in enumerate(labels) if label != -100]
        masked_positions[row, : len(columns)] = columns
    arrays = computed_tokens(batch["attention_mask"].numpy(), masked_positions)
    arrays["masked_positions"] = masked_positions
    return batch | {name: torch.from_numpy(array) for name, array in arrays.items()}


@pytest.fixture(autouse=True)
def a_kernel_for_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KERNELS, "by_bounds", attend_by_bounds)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("attention", ["rows", "rows_written_out", "by_bounds"])
@pytest.mark.parametrize("is_indexed", [False, True])
def test_losses_and_gradients_equal_the_stock_class(
    padded: bool, attention: str, is_indexed: bool
) -> None:
    ours, stock = pair_of_models()
    ours.attention = attention
    batch = make_batch(padded=padded)
    loss = ours(**(indexed(batch) if is_indexed else batch)).loss
    loss.backward()
    expected = stock(**batch).loss
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    theirs = dict(stock.named_parameters())
    for name, parameter in ours.named_parameters():
        # float32; atol covers gradients that are exactly 0 in one order of summation only.
        torch.testing.assert_close(
            parameter.grad,
            theirs[name].grad,
            rtol=1e-5,
            atol=1e-7,
            msg=lambda m, n=name: f"{n}: {m}",
        )


@pytest.mark.parametrize("case", ["left padding", "labelled padding", "labelled [CLS]"])
def test_whatever_is_padded_or_labelled_the_loss_is_that_of_the_stock_class(case: str) -> None:
    ours, stock = pair_of_models()
    batch = make_batch()
    if case == "left padding":  # what stands first is then padding, and the stock class pools it
        batch = {key: value.flip(1) if value.dim() == 2 else value for key, value in batch.items()}
    elif case == "labelled padding":
        batch["labels"][:, -1] = batch["input_ids"][:, -1]
    else:
        batch["labels"][:, 0] = batch["input_ids"][:, 0]
    torch.testing.assert_close(ours(**batch).loss, stock(**batch).loss, rtol=1e-5, atol=0)


@pytest.mark.parametrize("multiple", [1, 8, 64])
def test_padding_is_left_out_and_the_last_layer_computed_only_where_a_loss_reads(
    multiple: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collator, "MIN_TOKENS_MULTIPLE", multiple)
    monkeypatch.setattr(collator, "READ_MULTIPLE", multiple)
    ours, stock = pair_of_models()
    batch = make_batch()
    num_computed: dict[str, int] = {}
    modules = {"embeddings": ours.bert.embeddings, "vocabulary": ours.cls.predictions.decoder}
    modules |= {str(i): layer for i, layer in enumerate(ours.bert.encoder.layer)}
    for name, module in modules.items():
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: num_computed.update(
                {name: output.shape[:-1].numel()}
            )
        )
    loss = ours(**indexed(batch)).loss
    torch.testing.assert_close(loss, stock(**batch).loss, rtol=1e-5, atol=0)
    num_real, num_masked = (
        min(math.ceil(int(is_needed.sum()) / multiple) * multiple, most)
        for is_needed, most in (
            (batch["attention_mask"], ROWS * LENGTH),
            (batch["labels"] != -100, ROWS * ROWS),
        )
    )
    assert num_real < ROWS * LENGTH or multiple == 64
    # Hooks of whole layers see them: that is what distributed training and compilers need.
    assert num_computed == {
        "embeddings": num_real,
        "0": num_real,
        "1": num_real,
        "2": ROWS + num_masked,
        "vocabulary": num_masked,
    }


def test_recomputed_activations_give_the_same_gradients() -> None:
    ours, _ = pair_of_models(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2)
    gradients = []
    for recomputed in (False, True):
        if recomputed:
            ours.gradient_checkpointing_enable({"use_reentrant": False})
        ours.train().zero_grad()
        torch.manual_seed(3)
        ours(**indexed(make_batch())).loss.backward()
        gradients.append([p.grad.clone() for p in ours.parameters() if p.grad is not None])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-5, atol=1e-7)


class Recorder(TorchDispatchMode):
    """Collects the names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def test_a_loss_and_its_gradients_never_wait_for_the_device() -> None:
    ours, _ = pair_of_models()
    with Recorder() as recorder:
        ours(**indexed(make_batch())).loss.backward()
    assert "mm" in recorder.names
    waiting = {"_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique", "equal"}
    assert not recorder.names & waiting


def test_sums_divided_by_counts_are_the_stock_losses() -> None:
    ours, stock = pair_of_models()
    batch = make_batch()
    output = ours(**batch)
    logits = stock(**{k: v for k, v in batch.items() if k not in ("labels", "next_sentence_label")})
    masked = batch["labels"] != -100
    scores, targets = logits.prediction_logits[masked], batch["labels"][masked]
    assert int(output.mlm_count) == int(masked.sum())
    assert int(output.nsp_count) == ROWS
    assert int(output.mlm_correct) == int((scores.argmax(-1) == targets).sum())
    nsp_right = logits.seq_relationship_logits.argmax(-1) == batch["next_sentence_label"]
    assert int(output.nsp_correct) == int(nsp_right.sum())
    expected = -scores.log_softmax(-1).gather(1, targets[:, None]).sum()
    torch.testing.assert_close(output.mlm_loss, expected, rtol=1e-5, atol=0)


def test_without_labels_the_output_is_the_stock_output() -> None:
    ours, stock = pair_of_models()
    batch = {k: v for k, v in make_batch().items() if "label" not in k}
    for value, expected in zip(ours(**batch).to_tuple(), stock(**batch).to_tuple(), strict=True):
        assert torch.equal(value, expected)


def test_a_batch_without_masked_tokens_has_loss_zero_and_finite_gradients() -> None:
    ours, _ = pair_of_models()
    batch = indexed(make_batch() | {"labels": torch.full((ROWS, LENGTH), -100)})
    output = ours(**batch)
    assert output.mlm_loss == 0 and output.mlm_count == 0
    output.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in ours.parameters() if p.grad is not None)
    nsp_mean = output.nsp_loss / ROWS
    torch.testing.assert_close(output.loss, nsp_mean)


@pytest.mark.parametrize("missing", ["labels", "next_sentence_label"])
def test_one_kind_of_label_alone_gives_its_loss(missing: str) -> None:
    ours, _ = pair_of_models()
    batch = make_batch()
    both = ours(**batch)
    del batch[missing]
    alone = ours(**batch).loss
    part = (
        (both.nsp_loss / both.nsp_count) if missing == "labels" else both.mlm_loss / both.mlm_count
    )
    torch.testing.assert_close(alone, part, rtol=1e-5, atol=0)


def test_state_dict_and_config_are_those_of_the_stock_class() -> None:
    ours, stock = pair_of_models()
    assert list(ours.state_dict()) == list(stock.state_dict())
    assert ours.config.to_dict() == stock.config.to_dict()


@pytest.mark.parametrize("attention", ["rows", "rows_written_out", "by_bounds"])
@pytest.mark.parametrize("place", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_dropout_reaches_the_positions_of_the_last_layer(place: str, attention: str) -> None:
    ours, _ = pair_of_models(**{place: 0.5}, num_hidden_layers=1)
    ours.attention = attention
    ours.train()
    batch = indexed(make_batch())
    torch.manual_seed(1)
    first, second = ours(**batch).loss, ours(**batch).loss
    assert first != second
    torch.manual_seed(1)
    assert ours(**batch).loss == first


@pytest.mark.parametrize(
    ("size", "parameters"), [("tiny", 4.4), ("mini", 11.2), ("small", 28.8), ("base", 110.1)]
)
def test_named_sizes_have_the_published_numbers_of_parameters(size: str, parameters: float) -> None:
    # Turc et al. 2019, table 1, and Devlin et al. 2019 (in millions, with pooler, without heads).
    config = named_config(size, vocab_size=30522, pad_token_id=0)
    with torch.device("meta"):
        encoder = transformers.BertModel(config)
    assert encoder.num_parameters() / 1e6 == pytest.approx(parameters, abs=0.65)


def test_useful_flops_are_those_of_the_stock_model_less_what_no_loss_reads() -> None:
    """torch counts the products of a full batch; the formula adds up to them."""
    stock = transformers.BertForPreTraining(small_config())
    ids = torch.randint(5, VOCAB, (ROWS, LENGTH))
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):  # torch counts no fused kernel of a processor
        stock(ids)
    width, num_tokens = stock.config.hidden_size, ROWS * LENGTH
    pooled = 2 * ROWS * (width**2 + 2 * width)  # the pooler and the next-sentence head
    # Every position scored, which is what the stock model does.
    formula = TextFlops.of(stock).count(torch.full((ROWS,), LENGTH), num_tokens)
    assert formula == 3 * (counter.get_total_flops() - pooled)


@pytest.mark.parametrize("attention", ["rows", "rows_written_out", "by_bounds"])
def test_a_pair_has_the_loss_packed_that_it_has_alone(attention: str) -> None:
    ours, stock = pair_of_models()
    ours.attention = attention
    batch = make_batch()
    packed = ours(**indexed(batch))
    mlm_losses = []
    for row in range(ROWS):
        length = int(batch["attention_mask"][row].sum())
        alone = {
            key: value[row : row + 1, :length] if value.dim() == 2 else value[row : row + 1]
            for key, value in batch.items()
        }
        output = stock(**{k: v for k, v in alone.items() if "label" not in k})
        torch.testing.assert_close(  # float32
            packed.seq_relationship_logits[row],
            output.seq_relationship_logits[0],
            rtol=1e-5,
            atol=1e-6,
        )
        targets = alone["labels"][0]
        mlm_losses.append(
            torch.nn.functional.cross_entropy(
                output.prediction_logits[0], targets, ignore_index=-100, reduction="sum"
            )
        )
    torch.testing.assert_close(packed.mlm_loss, sum(mlm_losses), rtol=1e-5, atol=0)
