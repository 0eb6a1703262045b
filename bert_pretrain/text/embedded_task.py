"""A labelled task without a download: which library is this sentence of documentation from?

The modules of the user's own Python enter; a corpus without labels and labelled rows leave. A
module is in the corpus and in the rows to learn from, or in the rows to predict, never in both.
"""

from __future__ import annotations

import hashlib
import re
import sysconfig
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from bert_pretrain.text.embedded import package_folder, read_modules

# Installed with us, of different fields; "python" is the standard library.
LIBRARIES = ("python", "numpy", "scipy", "pandas", "sklearn", "torch", "transformers")
_MAX_OF_MODULE = 4  # paragraphs: else a few long modules would be the task
_MAX_OF_LIBRARY = {"train": 300, "test": 150}
_TEST_SHARE = 0.25  # of modules
# A library's own name would give it away.
_NAMES = re.compile(
    r"(?i)\b(?:num_?py|np|scipy|pandas|pd|scikit-learn|sklearn|py_?torch|torch\w*|transformers?"
    r"|hugging ?face|c?python)\b(?:\.\w+)*"
)


@dataclass(frozen=True)
class EmbeddedTask:
    """The task.

    Attributes:
        corpus: documents without labels, of the modules that the test rows are not from.
        rows: by split, `train` and `test`: `text` and `label`, a name of `LIBRARIES`.
    """

    corpus: list[str]
    rows: dict[str, list[dict[str, str]]]


def read_embedded_task() -> EmbeddedTask:
    """Read the modules of this Python, in some ten seconds; the same on every call."""
    folders = {name: package_folder(name) for name in LIBRARIES[1:]}
    folders["python"] = Path(sysconfig.get_path("stdlib"))
    corpus = []
    found: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for path, paragraphs in read_modules():
        library = _library_of(path, folders)
        split, digest = "train", ""
        if library:
            folder = folders[library]
            assert folder is not None
            # By its name alone, so that an installation elsewhere has the same task.
            name = f"{library}/{path.relative_to(folder).as_posix()}"
            digest = hashlib.sha256(name.encode()).hexdigest()
            split = "test" if int(digest[:8], 16) < _TEST_SHARE * 2**32 else "train"
            rows = paragraphs[:_MAX_OF_MODULE]
            found[split, library] += [(digest, _NAMES.sub("library", row)) for row in rows]
        if split == "train" and paragraphs:
            corpus.append("\n".join(paragraphs))
    chosen: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    for (split, library), members in sorted(found.items()):
        members.sort()
        texts = [text for _, text in members[: _MAX_OF_LIBRARY[split]]]
        chosen[split] += [{"text": text, "label": library} for text in texts]
    return EmbeddedTask(corpus, chosen)


def _library_of(path: Path, folders: dict[str, Path | None]) -> str | None:
    """Return the library that a module belongs to; packages lie within Python's own folder."""
    if path.parent.name == "pydoc_data":  # the language reference, whose topics are no modules
        return None
    for name in (*LIBRARIES[1:], *LIBRARIES[:1]):
        folder = folders[name]
        if folder is not None and path.is_relative_to(folder):
            is_other = name == "python" and "site-packages" in path.parts
            return None if is_other else name
    return None
