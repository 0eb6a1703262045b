"""Masked-language modelling with or without next-sentence prediction (Devlin et al. 2019, section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from bert_pretrain.data.loader import TrainingStream, evaluation_batches, training_windows
from bert_pretrain.data.random import Purpose, permutation
from bert_pretrain.evaluation.fill_mask import (
    Probe,
    fill_mask,
    format_table,
    make_probe,
    word_positions,
)
from bert_pretrain.objectives.interface import Batch, LossTerm, Place, Window
from bert_pretrain.publishing.text_export import card_fields, export_bert, write_config
from bert_pretrain.text.collator import PretrainingCollator
from bert_pretrain.text.masking import MaskingRule
from bert_pretrain.text.pairs import EpochPlan, PairMode, plan_epoch
from bert_pretrain.text.prepared import PreparedCorpus, unigram_entropy

FOX = "The quick brown fox jumped over the lazy dog."


class BertObjective:
    """Predict hidden tokens, and, when rows are pairs, whether B follows A; both losses weigh 1."""

    unit = "tokens"
    shown_file = "fill_mask.jsonl"
    data_card = ""
    language: str | None = None  # of the text, as far as somebody stated it

    def __init__(
        self,
        corpus: PreparedCorpus,
        tokenizer: PreTrainedTokenizerFast,
        make_model: Callable[[], PreTrainedModel],
        rule: MaskingRule,
        *,
        pair_mode: PairMode,
        max_seq_length: int,
        short_seq_prob: float,
        seed: int,
        max_eval_rows: int,
        num_workers: int,
        is_from_scratch: bool,
    ) -> None:
        """Plan the first epoch and the held-out rows.

        Args:
            corpus: documents of both splits.
            tokenizer: the one the corpus was prepared with.
            make_model: returns the model to train.
            rule: how tokens are selected and hidden.
            pair_mode: how pairs are drawn; `none` = no pairs and no next-sentence loss.
            max_seq_length: tokens per row.
            short_seq_prob: share of shorter rows, training only: held-out rows are as long as they
                can be.
            seed: of pairs, order and masks.
            max_eval_rows: most held-out rows evaluated, a fixed random subset; 0 = all.
            num_workers: worker processes that make batches.
            is_from_scratch: whether the model begins with random weights. Then the output bias
                begins as the logarithm of the tokens' frequencies, which training otherwise spends
                its first hundreds of updates on.
        """
        self.corpus = corpus
        self.tokenizer = tokenizer
        self.num_workers = num_workers
        self._make_model = make_model
        self._pair_mode = pair_mode
        self._max_seq_length = max_seq_length
        self._is_from_scratch = is_from_scratch
        self._token_counts = corpus.token_counts

        def plan_training(epoch: int) -> EpochPlan:
            return plan_epoch(
                corpus.store,
                corpus.train_documents,
                max_seq_length=max_seq_length,
                short_seq_prob=short_seq_prob,
                pair_mode=pair_mode,
                seed=seed,
                epoch=epoch,
            )

        def collator(*, evaluation: bool) -> PretrainingCollator:
            return PretrainingCollator(
                corpus.store,
                rule,
                cls_token_id=tokenizer.cls_token_id,
                sep_token_id=tokenizer.sep_token_id,
                pad_token_id=tokenizer.pad_token_id,
                max_seq_length=max_seq_length,
                seed=seed,
                evaluation=evaluation,
            )

        self.stream = TrainingStream(plan_training)
        self._training_collator = collator(evaluation=False)
        self._evaluation_collator = collator(evaluation=True)
        self.evaluation_plan = plan_epoch(
            corpus.store,
            corpus.validation_documents,
            max_seq_length=max_seq_length,
            short_seq_prob=0.0,
            pair_mode=pair_mode,
            seed=seed,
            epoch=0,
        )
        order = permutation(len(self.evaluation_plan), seed, Purpose.EVALUATION_ROW)
        num_eval_rows = min(max_eval_rows or len(order), len(order))
        self._evaluation_rows = np.sort(order[:num_eval_rows])
        self._baselines = self._measure_baselines()
        self._probes = self._make_probes()

    def fingerprint(self) -> dict[str, Any]:
        """Return the key of the prepared corpus."""
        return {"corpus": self.corpus.manifest["key"]}

    def build_model(self) -> PreTrainedModel:
        """Return the model; heads that no loss trains are frozen, which distributed training insists on."""
        model = self._make_model()
        if self._is_from_scratch:
            counts = self._token_counts + 0.1  # a token never seen is merely unlikely
            logits = np.log(counts / counts.sum())
            with torch.no_grad():
                model.cls.predictions.bias[: len(logits)] = torch.from_numpy(logits)
        if self._pair_mode == "none":
            model.bert.pooler.requires_grad_(False)
            model.cls.seq_relationship.requires_grad_(False)
        return model

    def num_rows(self, epoch: int) -> int:
        """Return the number of training rows of an epoch."""
        return len(self.stream.plan(epoch))

    def training_windows(
        self,
        place: Place,
        *,
        global_batch_size: int,
        num_processes: int,
        process_index: int,
        num_micro_batches: int,
    ) -> Iterator[Window]:
        """Yield this process's share of window after window; see `Objective`."""
        return training_windows(
            self.stream,
            self._training_collator,
            place,
            global_batch_size=global_batch_size,
            num_processes=num_processes,
            process_index=process_index,
            num_micro_batches=num_micro_batches,
            num_workers=self.num_workers,
        )

    def evaluation_batches(
        self, *, batch_size: int, num_processes: int, process_index: int
    ) -> Iterator[Batch]:
        """Yield this process's share of the fixed held-out rows; see `Objective`."""
        return evaluation_batches(
            self.evaluation_plan,
            self._evaluation_collator,
            self._evaluation_rows,
            batch_size=batch_size,
            num_processes=num_processes,
            process_index=process_index,
        )

    def target_counts(self, batch: Batch) -> dict[str, int]:
        """Return the numbers of masked tokens and of pairs."""
        counts = {"mlm": int((batch["labels"] != -100).sum())}
        if "next_sentence_label" in batch:
            counts["nsp"] = len(batch["next_sentence_label"])
        return counts

    def loss_terms(self, model: nn.Module, batch: Batch) -> dict[str, LossTerm]:
        """Return the sums of both losses and of correct predictions."""
        output = model(**batch)
        terms = {"mlm": LossTerm(output.mlm_loss, metrics={"accuracy": output.mlm_correct})}
        if "next_sentence_label" in batch:
            terms["nsp"] = LossTerm(output.nsp_loss, metrics={"accuracy": output.nsp_correct})
        return terms

    def measures(self, model: PreTrainedModel, means: dict[str, float]) -> dict[str, float]:
        """Return pseudo-perplexity, the unigram entropy of the training tokens (nats), and the larger NSP share."""
        derived = {"pseudo_perplexity": math.exp(means["mlm_loss"])} if "mlm_loss" in means else {}
        return derived | self._baselines

    def warnings(self, row: dict[str, Any]) -> list[str]:
        """Return nothing: that a loss gets worse is seen for every objective."""
        return []

    def show(
        self, model: PreTrainedModel, run_dir: Path, *, step: int
    ) -> tuple[str, list[dict[str, Any]]]:
        """Return the [MASK] table of the fox sentence and of held-out sentences."""
        rows = fill_mask(model, self.tokenizer, self._probes)
        return format_table(rows), rows

    def write_config(self, model: PreTrainedModel, directory: Path) -> None:
        """Write configuration and tokenizer into a checkpoint's folder."""
        write_config(model, self.tokenizer, directory)

    def export(self, model: PreTrainedModel, directory: Path) -> None:
        """Write model and tokenizer as stock transformers load them."""
        export_bert(model, self.tokenizer, directory)

    def card_fields(self, model: PreTrainedModel) -> dict[str, Any]:
        """Return what the model card says of the exported model."""
        return card_fields(
            model,
            with_nsp=self._pair_mode != "none",
            language=self.language,
            max_seq_length=self._max_seq_length,
            is_from_scratch=self._is_from_scratch,
        )

    def _measure_baselines(self) -> dict[str, float]:
        baselines = {"unigram_entropy": unigram_entropy(self._token_counts)}
        labels = self.evaluation_plan.next_sentence_label[self._evaluation_rows]
        if self._pair_mode != "none":
            share = float((labels == 1).mean())
            baselines["majority_nsp_accuracy"] = max(share, 1 - share)
        return baselines

    def _make_probes(self) -> list[Probe]:
        fox = self.tokenizer.encode(FOX, add_special_tokens=False)
        places = word_positions(self.tokenizer, fox, ["brown", "over", "dog"]) or [len(fox) // 2]
        probes = [make_probe(self.tokenizer, fox, places)]
        for tokens in _held_out_sentences(self.corpus, count=2):
            is_word = [token.isalpha() for token in self.tokenizer.convert_ids_to_tokens(tokens)]
            words = [i for i, alphabetic in enumerate(is_word) if alphabetic] or [0]
            probes.append(
                make_probe(
                    self.tokenizer,
                    tokens,
                    sorted({words[len(words) // 3], words[2 * len(words) // 3]}),
                )
            )
        return probes


def _held_out_sentences(corpus: PreparedCorpus, *, count: int) -> list[list[int]]:
    """Return the ids of the first `count` held-out sentences of 10 to 24 tokens, at most one per document."""
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
