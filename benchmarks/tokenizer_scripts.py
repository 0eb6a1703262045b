"""What `train-tokenizer` does by default with text in each of twenty-one languages.

For every language of `tests/languages.py` a tokenizer is trained, with the defaults of the command,
on a text that is made of the words of its four sentences in new orders (`tests/recombined.py`), or
on FOLDER/CODE.txt of `--text_dir`, where there is one. Every fiftieth passage is kept out and tells
how much is unknown. A recombined text shows what a rule does to a script: marks that are lost,
words that are lost whole. It cannot show characters that only new text has; real text does.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from results import write_results

from bert_pretrain.text.scripts import has_mark
from bert_pretrain.text.tokenizer_training import train_wordpiece
from bert_pretrain.text.unknown import UnknownCount

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from languages import SAMPLES, Sample
from recombined import recombine

HEADINGS = (
    "language",
    "script",
    "letters with marks",
    "tokenizer default",
    "[UNK] tokens",
    "lost characters",
    "round trip",
)


def read_passages(sample: Sample, text_dir: Path | None, num_passages: int) -> list[str]:
    """Return the passages of a language; none if there is no file of it."""
    if text_dir is None:
        return recombine(sample, num_passages)
    path = text_dir / f"{sample.language}.txt"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return list(dict.fromkeys(filter(None, map(str.strip, lines))))


def measure(passages: Sequence[str], vocab_size: int) -> dict[str, Any]:
    """Train on most passages and return what the rest, and the command's own line, say."""
    held_out = passages[::50]
    training = [passage for number, passage in enumerate(passages) if number % 50]
    lines: list[str] = []
    tokenizer = train_wordpiece(
        training,
        vocab_size=vocab_size,
        max_unknown_share=1,
        show_progress=False,
        report=lines.append,
    )
    backend = tokenizer.backend_tokenizer
    unknown = UnknownCount(tokenizer.unk_token_id)
    num_returned = 0
    for passage in held_out:
        encoding = backend.encode(passage, add_special_tokens=False)
        unknown.add(passage, encoding)
        num_returned += squeezed(tokenizer.decode(encoding.ids)) == squeezed(passage)
    letters = "".join(filter(str.isalpha, "".join(passages)))
    marked = sum(map(has_mark, "".join(passages)))
    return {
        "line": lines[0],
        "strip_accents": json.loads(backend.normalizer.__getstate__())["strip_accents"],
        "marked_share": marked / len(letters),
        "unknown_share": unknown.token_share,
        "lost_share": unknown.character_share,
        "returned_share": num_returned / len(held_out),
    }


def squeezed(text: str) -> str:
    """Return a text without case and spaces."""
    # Letter by letter, as the tokenizer folds it: a whole word's last sigma would get its own form.
    return "".join(letter.lower() for letter in text if not letter.isspace())


def row(sample: Sample, found: dict[str, Any]) -> list[str]:
    """Return a language's row of the table."""
    return [
        sample.language,
        sample.script,
        f"{100 * found['marked_share']:.1f} %",
        f"uncased, marks {'stripped' if found['strip_accents'] else 'kept'}",
        f"{100 * found['unknown_share']:.2f} %",
        f"{100 * found['lost_share']:.2f} %",
        f"{100 * found['returned_share']:.0f} %",
    ]


def main() -> None:
    """Print the table and the lines that the command printed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text_dir", type=Path, help="folder of CODE.txt, a passage a line")
    parser.add_argument("--passages", type=int, default=2000, help="of each recombined text")
    parser.add_argument("--vocab_size", type=int, default=30522)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    runs = {}
    for sample in SAMPLES:
        passages = read_passages(sample, arguments.text_dir, arguments.passages)
        if passages:
            runs[sample.language] = (sample, measure(passages, arguments.vocab_size))
    print(f"| {' | '.join(HEADINGS)} |\n|{'---|' * len(HEADINGS)}")
    for sample, found in runs.values():
        print(f"| {' | '.join(row(sample, found))} |")
    print()
    for language, (_, found) in runs.items():
        print(f"{language}  {found['line']}")
    figures = {
        f"{language}_{name}": float(found[name])
        for language, (_, found) in runs.items()
        for name in ("unknown_share", "lost_share", "returned_share")
    }
    write_results(
        arguments.json, figures, runs={language: found for language, (_, found) in runs.items()}
    )


if __name__ == "__main__":
    main()
