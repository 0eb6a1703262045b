"""Masked-language modelling, with or without pairs (Devlin et al. 2019, section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from bert_pretrain.data.stream import Batch, HeldOutRows, TrainingStream
from bert_pretrain.errors import InputError
from bert_pretrain.evaluation.fill_mask import (
    Probe,
    fill_mask,
    format_table,
    make_probe,
    word_positions,
)
from bert_pretrain.models.beginning import begin_with_frequencies
from bert_pretrain.models.flops import TextFlops
from bert_pretrain.objectives.interface import LossTerm
from bert_pretrain.publishing.export import (
    export_text_model,
    text_card_fields,
    write_config,
)
from bert_pretrain.text.blocks import evaluation_rows, training_blocks
from bert_pretrain.text.collator import PretrainingCollator
from bert_pretrain.text.layout import read_layouts
from bert_pretrain.text.masking import MaskingRule
from bert_pretrain.text.pairs import EpochPlan, PairMode
from bert_pretrain.text.prepared import PreparedCorpus, unigram_entropy
from bert_pretrain.text.windows import IS_RANDOM, NO_PAIR

# What every encoder is called with.
_PLAIN_INPUTS = (
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "labels",
    "next_sentence_label",
)
_WORD_STARTS = "\u0120\u2581"  # what byte-level and SentencePiece tokenizers write for a space
_LARGEST_EXPONENT = 709.0  # of e, in float64
FOX = "The quick brown fox jumped over the lazy dog."


class TextObjective:
    """Predict hidden tokens and, where rows are pairs, their label; both weigh 1."""

    coupling = None  # each row has its own losses

    def __init__(
        self,
        training: TrainingStream[EpochPlan],
        held_out: HeldOutRows[EpochPlan],
        make_model: Callable[[], PreTrainedModel],
        *,
        token_counts: NDArray[np.int64] | None,
    ) -> None:
        """Keep the rows and how the model is made.

        Args:
            training: rows to train on.
            held_out: rows to evaluate on.
            make_model: returns the model to train.
            token_counts: int64 (V,), of the training text. The output bias of a new model begins as
                the logarithm of these frequencies, which training otherwise spends its first
                hundreds of updates on. None = the model is not new.
        """
        self.training = training
        self.held_out = held_out
        self._make_model = make_model
        self._token_counts = token_counts

    def build_model(self) -> PreTrainedModel:
        """Return the model; what no loss trains is frozen, as distributed training needs."""
        model = self._make_model()
        if self._token_counts is not None:
            counts = self._token_counts + 0.1  # a token never seen is merely unlikely
            begin_with_frequencies(model, torch.from_numpy(np.log(counts / counts.sum())))
        self._freeze_untrained(model)
        self._flops = TextFlops.of(model)
        return model

    def _freeze_untrained(self, model: PreTrainedModel) -> None:
        """Freeze the parameters that have no gradient, such as heads for pairs without pairs.

        Raises:
            InputError: the model does not take the rows.
        """
        rows = self.held_out.rows[:1]
        made = self.held_out.collator.collate([(0, rows, self.held_out.plan.take(rows))])
        # Without what only kernels of the device read: the model is still on the host.
        batch = {name: made[name] for name in _PLAIN_INPUTS if name in made}
        # Some tables of positions are frozen from the start.
        parameters = [p for p in model.parameters() if p.requires_grad]
        was_training = model.training
        model.eval()  # in training some architectures leave out layers at random
        try:
            terms = self.loss_terms(model, batch).values()
            loss = torch.stack([term.sum for term in terms]).sum()
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise InputError(
                f"{type(model).__name__} of transformers cannot be trained on a row of "
                f"{made['input_ids'].shape[1]} tokens ({type(error).__name__}: {error})",
                advice="pass another `config_name` or `model_name_or_path`",
            ) from error
        model.train(was_training)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)

    def target_counts(self, batch: Batch) -> dict[str, int]:
        """Return the numbers of masked tokens and of pairs."""
        counts = {"mlm": int((batch["masked_positions"] >= 0).sum())}
        if "next_sentence_label" in batch:
            counts["nsp"] = int((batch["next_sentence_label"] != NO_PAIR).sum())
        return counts

    def useful_flops(self, batch: Batch) -> float:
        """Return what a batch needs; see `TextFlops`."""
        lengths = batch["attention_mask"].sum(dim=1)
        return self._flops.count(lengths, int((batch["masked_positions"] >= 0).sum()))

    def loss_terms(self, model: nn.Module, batch: Batch) -> dict[str, LossTerm]:
        """Return the sums of both losses and of correct predictions."""
        output = model(**batch)
        terms = {"mlm": LossTerm(output.mlm_loss, metrics={"accuracy": output.mlm_correct})}
        if "next_sentence_label" in batch:
            terms["nsp"] = LossTerm(output.nsp_loss, metrics={"accuracy": output.nsp_correct})
        return terms


class TextMonitor:
    """Baselines of both losses, and the [MASK] table of a fixed and of held-out sentences."""

    shown_file = "fill_mask.jsonl"

    def __init__(
        self,
        corpus: PreparedCorpus,
        tokenizer: PreTrainedTokenizerFast,
        held_out: HeldOutRows[EpochPlan],
    ) -> None:
        """Measure the baselines and choose the sentences.

        Args:
            corpus: documents of both splits.
            tokenizer: the one the corpus was prepared with.
            held_out: the rows that are evaluated.
        """
        self.tokenizer = tokenizer
        self._baselines = {"unigram_entropy": unigram_entropy(corpus.token_counts)}
        self._baselines |= pair_baseline(held_out.plan, held_out.rows)
        self._probes = self._make_probes(corpus)

    def measures(
        self, model: PreTrainedModel, means: dict[str, float], **_: Any
    ) -> dict[str, float]:
        """Return pseudo-perplexity, the training text's unigram entropy (nats), and NSP's floor.

        Of sentence order too: the more frequent label's share of the evaluated rows.
        """
        derived = {}
        if "mlm_loss" in means:
            # A loss that has diverged has one beyond all numbers.
            loss = means["mlm_loss"]
            derived["pseudo_perplexity"] = math.exp(loss) if loss < _LARGEST_EXPONENT else math.inf
        return derived | self._baselines

    def warnings(self, row: dict[str, Any]) -> list[str]:
        """Return nothing: the loop itself sees a loss that gets worse."""
        return []

    def show(
        self, model: PreTrainedModel, run_dir: Path, *, step: int, is_last: bool
    ) -> tuple[str, list[dict[str, Any]]]:
        """Return the [MASK] table."""
        rows = fill_mask(model, self.tokenizer, self._probes)
        return format_table(rows), rows

    def _make_probes(self, corpus: PreparedCorpus) -> list[Probe]:
        fox = self.tokenizer.encode(FOX, add_special_tokens=False)
        places = word_positions(self.tokenizer, fox, ["brown", "over", "dog"]) or [len(fox) // 2]
        probes = [make_probe(self.tokenizer, fox, places)]
        for tokens in _held_out_sentences(corpus, count=2):
            pieces = self.tokenizer.convert_ids_to_tokens(tokens)
            is_word = [piece.lstrip(_WORD_STARTS).isalpha() for piece in pieces]
            words = [i for i, alphabetic in enumerate(is_word) if alphabetic] or [0]
            chosen = sorted({words[len(words) // 3], words[2 * len(words) // 3]})
            probes.append(make_probe(self.tokenizer, tokens, chosen))
        return probes


@dataclass(frozen=True)
class TextExporter:
    """Writes model and tokenizer.

    Attributes:
        tokenizer: the model's.
        describe_data: returns the data card; it is called where the card is needed, on the first
            process.
        with_nsp: whether the next-sentence head was trained.
        language: code of the text's language; None = nobody stated it.
        max_seq_length: tokens of the longest row that the model was trained on.
        is_from_scratch: whether it began with random weights.
        is_of_order: whether that head was trained to tell the order of neighbours.
    """

    tokenizer: PreTrainedTokenizerFast
    describe_data: Callable[[], str]
    with_nsp: bool
    language: str | None
    max_seq_length: int
    is_from_scratch: bool
    is_of_order: bool = False

    @property
    def data_card(self) -> str:
        """What the text is, and the rows made of it."""
        return self.describe_data()

    def write_config(self, model: PreTrainedModel, directory: Path) -> None:
        """Write configuration and tokenizer into a checkpoint's folder."""
        write_config(model, self.tokenizer, directory)

    def export(self, model: PreTrainedModel, directory: Path) -> None:
        """Write model and tokenizer as stock transformers load them."""
        export_text_model(model, self.tokenizer, directory)

    def card_fields(self, model: PreTrainedModel) -> dict[str, Any]:
        """Return what the model card says of the exported model."""
        return text_card_fields(
            model,
            with_nsp=self.with_nsp,
            language=self.language,
            max_seq_length=self.max_seq_length,
            is_from_scratch=self.is_from_scratch,
            is_of_order=self.is_of_order,
        )


def pair_baseline(plan: EpochPlan, rows: NDArray[np.int64]) -> dict[str, float]:
    """Return the more frequent label's share of the pairs among some rows, by name; {} without."""
    labels = plan.next_sentence_label[rows]
    labels = labels[labels != NO_PAIR]
    if not len(labels):
        return {}
    share = float((labels == IS_RANDOM).mean())
    return {"majority_nsp_accuracy": max(share, 1 - share)}


def text_rows(
    corpus: PreparedCorpus,
    tokenizer: PreTrainedTokenizerFast,
    rule: MaskingRule,
    *,
    pair_mode: PairMode,
    max_seq_length: int,
    short_seq_prob: float,
    seed: int,
    max_eval_rows: int,
    few_shapes: bool = False,
    cuts_padding: bool = False,
    later_lengths: Sequence[int] = (),
    same_document_partners: bool = False,
) -> tuple[TrainingStream[EpochPlan], HeldOutRows[EpochPlan]]:
    """Return the rows to train on and those to evaluate on, which are planned at once.

    Args:
        corpus: documents of both splits.
        tokenizer: the one the corpus was prepared with, which lays out rows.
        rule: how tokens are selected and hidden.
        pair_mode: how pairs are drawn; `none` = no pairs.
        max_seq_length: tokens per row, in the first phase of a run.
        short_seq_prob: share of shorter rows in training; held-out rows are as long as they can be.
        seed: of pairs, order and masks.
        max_eval_rows: most held-out rows evaluated, a fixed random subset; 0 = all.
        few_shapes: whether training batches are to have few shapes, as a compiled model wants.
        cuts_padding: whether others end with their longest row; see `PretrainingCollator`.
        later_lengths: tokens per row in each further phase.
        same_document_partners: whether pairs may be of distant places of one document where there
            is no partner in another one.

    Raises:
        InputError: the held-out documents allow no pairs.
    """
    lengths = (max_seq_length, *later_lengths)
    layouts = read_layouts(tokenizer)
    pairs: dict[str, Any] = {
        "pair_mode": pair_mode,
        "seed": seed,
        "same_document_partners": same_document_partners,
        "num_special_tokens": layouts.num_special_tokens,
    }

    def collator(*, evaluation: bool) -> PretrainingCollator:
        return PretrainingCollator(
            corpus.store,
            rule,
            layouts=layouts,
            pad_token_id=tokenizer.pad_token_id,
            seed=seed,
            evaluation=evaluation,
            few_shapes=few_shapes and not evaluation,
            cuts_padding=cuts_padding,
        )

    rows, *later = [
        training_blocks(corpus, max_seq_length=length, short_seq_prob=short_seq_prob, **pairs)
        for length in lengths
    ]
    rows.check()  # before the held-out documents, of which the same may be true
    training = TrainingStream(
        rows,
        collator(evaluation=False),
        identity={"corpus": corpus.manifest["key"], "rows planned at once": rows.block_size},
        later_phases=later,
        heaviest_phase=lengths.index(max(lengths)),
        heaviest_progress=float(rule.highest_rate > rule.mlm_probability),
    )

    def held_out_rows(length: int) -> HeldOutRows[EpochPlan]:
        plan, evaluated = evaluation_rows(
            corpus.store,
            corpus.validation_documents,
            max_seq_length=length,
            max_rows=max_eval_rows,
            **pairs,
        )
        # In a run of one length all validation rows have these, and `TextMonitor` states them.
        facts = {"max_seq_length": length} | pair_baseline(plan, evaluated)
        return HeldOutRows(
            plan, evaluated, collator(evaluation=True), facts if later_lengths else {}
        )

    held_out, *held_out_later = map(held_out_rows, lengths)
    return training, replace(held_out, later_phases=tuple(held_out_later))


def _held_out_sentences(corpus: PreparedCorpus, *, count: int) -> list[list[int]]:
    """Return one sentence of 10 to 24 tokens of each of the first held-out documents with any."""
    held_out = set(corpus.validation_documents.tolist())
    found: list[list[int]] = []
    for shard in corpus.store.shards:
        ends = np.cumsum(shard.sentence_lengths, dtype=np.int64)
        first = 0
        for offset, num_sentences in enumerate(shard.sentences_per_document.tolist()):
            lengths = shard.sentence_lengths[first : first + num_sentences]
            suitable = np.flatnonzero((lengths >= 10) & (lengths <= 24))
            if shard.first_document + offset in held_out and len(suitable):
                sentence = first + suitable[len(suitable) // 2]
                begin = ends[sentence] - shard.sentence_lengths[sentence]
                found.append(shard.tokens[begin : ends[sentence]].tolist())
            if len(found) == count:
                return found
            first += num_sentences
    return found
