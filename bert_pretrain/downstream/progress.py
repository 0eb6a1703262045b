"""The seeds that a fine-tuning has finished, so that one that was ended goes on with the others."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from bert_pretrain.data.atomic import write_json
from bert_pretrain.data.json_files import parse_json
from bert_pretrain.errors import InputError, without_secrets

PROGRESS_FILE = ".progress.json"


class SeedProgress:
    """Outcomes by seed, in a file of the output folder until the last one is there.

    A seed's training is a function of the seed, so what goes on ends as what was never ended.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], *, seeds: Collection[int]) -> None:
        """Name the file; nothing is written yet.

        Args:
            folder: of the results.
            identity: what an outcome depends on beside its seed, as JSON has it.
            seeds: that are asked for.
        """
        self._path = folder / PROGRESS_FILE
        self._identity = without_secrets(identity)  # which is how it is written
        self._seeds = seeds

    def read(self) -> dict[int, dict[str, Any]]:
        """Return the outcomes of the seeds that were finished.

        Raises:
            InputError: the file is damaged, or of another fine-tuning, or a seed is finished that
                is not asked for, whose model may be the best so far.
        """
        advice = "pass a new `output_dir`, or leave `resume` out"
        try:
            content = parse_json(self._path.read_text(encoding="utf-8"))
            theirs = dict(content["identity"])
            outcomes = {int(seed): dict(found) for seed, found in content["outcomes"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{self._path} is damaged ({type(error).__name__})",
                advice=advice,
            ) from error
        changed = [name for name, value in self._identity.items() if theirs.get(name) != value]
        if changed:
            listed = ", ".join(f"`{name}`" for name in changed)
            raise InputError(
                f"the fine-tuning in {self._path.parent} was begun with other {listed}",
                advice=advice,
            )
        if others := sorted(outcomes.keys() - set(self._seeds)):
            raise InputError(
                f"the fine-tuning in {self._path.parent} has finished seed {others[0]}, which is "
                "not among `seeds`",
                advice="pass it too, or a new `output_dir`",
            )
        return outcomes

    def write(self, outcomes: dict[int, dict[str, Any]]) -> None:
        """Keep the outcomes so far; a metric of the Hub may be NaN."""
        content = {"identity": self._identity, "outcomes": outcomes}
        write_json(self._path, content, allow_nan=True)

    def remove(self) -> None:
        """Remove the file: all is done."""
        self._path.unlink(missing_ok=True)
