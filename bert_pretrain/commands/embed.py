"""`bert-pretrain embed`: the vectors of texts or images, in a file.

A model, and texts or images enter; a table or matrix leaves, with a few lines on what it holds.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm.auto import tqdm
from transformers import HfArgumentParser
from transformers.utils import logging as transformers_logging

from bert_pretrain.commands.running import reporting_input_errors
from bert_pretrain.config.embedding import (
    EmbedArguments,
    EmbedData,
    EmbedImages,
    EmbedText,
    check_embedding,
    refuse_given,
)
from bert_pretrain.config.flags import parse_flags, pick
from bert_pretrain.embedding.embedder import Embedder
from bert_pretrain.embedding.files import table_beside
from bert_pretrain.embedding.loading import EmbeddingRule, load_embedder
from bert_pretrain.embedding.rows import RowSource, open_image_rows, open_text_rows
from bert_pretrain.embedding.writing import Written, check_output, embed_to_file
from bert_pretrain.errors import InputError, spell
from bert_pretrain.text.documents import TextSource

_OF_TEXTS = ("text_column", "document_boundary", "tsv_quotes", "streaming", "on_bad_text")
_OF_IMAGES = ("image_column", "on_bad_image", "pixel_range")


def main(arguments: Sequence[str] | None = None) -> int:
    """Embed as the command line says; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with reporting_input_errors(debug="--debug" in arguments, model_name_or_path="--model"):
        if (num_processes := os.environ.get("WORLD_SIZE", "1")) != "1":
            raise InputError(
                f"{num_processes} processes were started but embedding is done by one process",
                advice="start it without torchrun or accelerate launch",
            )
        # A model without a head is meant; transformers would report what it leaves out.
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        parser = HfArgumentParser(
            (EmbedArguments, EmbedData, EmbedText, EmbedImages),
            prog="bert-pretrain embed",
            description="Write the vectors that an encoder makes of texts or images, in the order "
            "of the rows. A text is a row of a table or a line of a .txt. Killed at any moment, "
            "the same command goes on where it stood.",
            allow_abbrev=False,
        )
        _embed(*parse_flags(parser, arguments))
    return 0


def _embed(options: EmbedArguments, data: EmbedData, text: EmbedText, images: EmbedImages) -> None:
    check_embedding(data)
    path = Path(options.output)
    check_output(path, overwrite=options.overwrite)
    rule = pick(EmbeddingRule, options, text, pixel_range=images.pixel_range.ends)
    embedder = load_embedder(options.model, rule)
    is_text = embedder.kind == "text"
    if is_text:
        refuse_given(images, _OF_IMAGES, embedder.kind)
        source = open_text_rows(pick(TextSource, data, text), label_column=data.label_column)
    else:
        refuse_given(text, _OF_TEXTS, embedder.kind)
        source = open_image_rows(**vars(data), image_column=images.image_column)
    sys.stdout.write(_describe_plan(embedder, source))
    sys.stdout.flush()
    with tqdm(total=source.num_rows, desc="embedding", unit=f" {embedder.kind}s") as progress:
        written = embed_to_file(
            embedder,
            source,
            path,
            dtype=options.dtype,
            batch_size=options.per_device_eval_batch_size,
            on_bad=text.on_bad_text if is_text else images.on_bad_image,
            overwrite=options.overwrite,
            advance=progress.update,
        )
    sys.stdout.write(_describe_file(path, embedder, written, options.dtype))


def _describe_plan(embedder: Embedder, source: RowSource) -> str:
    identity = embedder.identity
    how = "as its own classifier is fed"
    if embedder.kind == "text":
        pooled = "the mean of the tokens" if identity["pooling"] == "mean" else "[CLS]"
        how = f"{pooled}, at most {identity['max_seq_length']} tokens"
    precision = "bfloat16" if embedder.bf16 else "float32"
    lines = [
        f"model            {embedder.name} ({how}), in {precision} on {embedder.model.device}",
        f"{embedder.kind + 's':16} {source.description}",
        *(f"note             {note}" for note in source.notes),
        *(f"WARNING: {spell(note)}" for note in embedder.notes),
    ]
    return "\n".join(lines) + "\n"


def _describe_file(path: Path, embedder: Embedder, written: Written, dtype: str) -> str:
    counts, kind = written.counts, embedder.kind
    lines = [f"embedded         {counts.num_embedded:,} {kind}s, {written.width} numbers ({dtype})"]
    if written.num_resumed:
        lines.append(f"resumed          after {written.num_resumed:,} rows that were there")
    if kind == "text":
        length = embedder.identity["max_seq_length"]
        lines.append(
            f"cut              {counts.num_cut:,} texts, after {length} tokens (--max_seq_length)"
        )
    if counts.num_skipped:
        more = "; ..." if counts.num_skipped > len(counts.skipped) else ""
        lines.append(f"skipped          {counts.num_skipped:,}: {'; '.join(counts.skipped)}{more}")
    beside = f", its rows in {table_beside(path)}" if path.suffix == ".npy" else ""
    return "\n".join([*lines, f"written          {path}{beside}"]) + "\n"
