"""`bert-pretrain neighbours`: the nearest of embedded texts or images.

A file that `embed` wrote, and queries enter; a table of neighbours leaves, and JSON if asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import HfArgumentParser
from transformers.utils import logging as transformers_logging

from bert_pretrain.commands.running import reporting_input_errors
from bert_pretrain.config.embedding import NeighboursArguments
from bert_pretrain.config.flags import check_json_target, parse_flags
from bert_pretrain.data.atomic import write_json
from bert_pretrain.embedding.files import CONTENT
from bert_pretrain.embedding.loading import EmbeddingRule, load_embedder
from bert_pretrain.embedding.search import Bank, nearest, open_bank
from bert_pretrain.errors import InputError

_SHOWN_LETTERS = 80  # of a text


class Queries(NamedTuple):
    """What is sought: a name of each for people, embeddings float32 (Q, D), rows of the bank."""

    names: list[str]
    embeddings: NDArray[np.float32]
    own_rows: list[int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Search as the command line says; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with reporting_input_errors(debug="--debug" in arguments, model_name_or_path="--model"):
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        parser = HfArgumentParser(
            NeighboursArguments,
            prog="bert-pretrain neighbours",
            description="Find, among embeddings, those whose cosine with a query is largest: "
            "exactly, by products with all of them.",
            allow_abbrev=False,
        )
        (options,) = parse_flags(parser, arguments)
        check_json_target(options.json)
        _search(options)
    return 0


def _search(options: NeighboursArguments) -> None:
    bank = open_bank(Path(options.embeddings))
    queries = _queries(bank, options)
    found = nearest(bank, queries.embeddings, k=options.k, own_rows=queries.own_rows)
    facts = bank.facts_of(found.rows.flatten().tolist())
    k = found.rows.shape[1]
    results: list[dict[str, Any]] = [
        {
            "query": name,
            "neighbours": [
                {"row": int(row), "cosine": float(cosine), **fact}
                for row, cosine, fact in zip(
                    found.rows[place],
                    found.cosines[place],
                    facts[place * k : (place + 1) * k],
                    strict=True,
                )
            ],
        }
        for place, name in enumerate(queries.names)
    ]
    for result in results:
        sys.stdout.write(_format(result, CONTENT[bank.record["kind"]]))
    if options.json:
        record = {name: bank.record[name] for name in ("kind", "model")}
        write_json(
            Path(options.json), {"embeddings": options.embeddings, **record, "results": results}
        )


def _queries(bank: Bank, options: NeighboursArguments) -> Queries:
    """Return what is sought.

    Raises:
        InputError: nothing or two kinds of things are, the bank holds the other kind, or the model
            is not the one that made it.
    """
    given = {"text": options.text, "image": options.image, "row": options.row}
    kinds = [kind for kind, values in given.items() if values]
    if len(kinds) != 1:
        raise InputError(
            f"{'nothing' if not kinds else ' and '.join(f'`{kind}`' for kind in kinds)} is given "
            "to seek the nearest of",
            advice="pass one of `text`, `image` and `row`",
        )
    if options.row:
        embeddings, content = bank.embeddings_of(options.row), CONTENT[bank.record["kind"]]
        facts = zip(options.row, bank.facts_of(options.row), strict=True)
        names = [f"row {row}: {fact[content] or _place(fact)}" for row, fact in facts]
        return Queries(names, embeddings, options.row)
    (kind,) = kinds
    if kind != bank.record["kind"]:
        raise InputError(
            f"{options.embeddings} holds {bank.record['kind']}s but `{kind}` asks for others",
            advice=f"pass `{bank.record['kind']}` or `row`",
        )
    names = list(options.text or options.image or [])
    return Queries(names, _embed(names, bank, options), [])


def _embed(contents: list[str], bank: Bank, options: NeighboursArguments) -> NDArray[np.float32]:
    """Embed queries as the bank was."""
    identity = bank.record["identity"]
    rule = EmbeddingRule(mixed_precision=identity["mixed_precision"])
    if bank.record["kind"] == "text":
        length = identity["max_seq_length"]
        rule = replace(rule, pooling=identity["pooling"], max_seq_length=length)
    elif "pixel_range" in identity:
        rule = replace(rule, pixel_range=identity["pixel_range"])
    model = options.model or bank.record["model"]
    embedder = load_embedder(model, rule)
    embeddings = embedder.embed(contents)
    if embeddings.shape[1] != bank.width:
        raise InputError(
            f"{model!r} makes vectors of {embeddings.shape[1]} numbers but {options.embeddings} "
            f"has {bank.width}",
            advice="pass the `model` that made it",
        )
    if embedder.identity != identity:
        names = [name for name in identity if identity[name] != embedder.identity.get(name)]
        listed = " and ".join(name.replace("_", " ") for name in names)
        raise InputError(
            f"the {listed} of {model!r} are no longer those that made {options.embeddings}",
            advice="embed again, or pass the `model` that made it",
        )
    return embeddings


def _format(result: dict[str, Any], content: str) -> str:
    """Return a table of the neighbours of one query."""
    lines = [f"\n{_short(result['query'])}", f"{'cosine':>7}  {'row':>9}  {content}"]
    for found in result["neighbours"]:
        place = _place(found)
        shown = _short(found[content] or "") or place
        label = f"  [{found['label']}]" if found["label"] is not None else ""
        where = f"  ({place})" if shown != place else ""
        lines.append(f"{found['cosine']:7.4f}  {found['row']:9}  {shown}{label}{where}")
    return "\n".join(lines) + "\n"


def _place(fact: dict[str, Any]) -> str:
    """Return where a row was found."""
    return f"{fact['file']}:{fact['file_row']}"


def _short(text: str) -> str:
    """Return a text on one line, cut where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_LETTERS else line[: _SHOWN_LETTERS - 3] + "..."
