"""The embedded corpus: the documentation inside the user's own Python.

With it a first run needs no download and we ship no text. One module is one document, and so is
one topic of the language reference. The result is cached, keyed by the versions it came from.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

from filelock import FileLock
from huggingface_hub import constants

from bert_pretrain.data.digests import unseal, write_sealed
from bert_pretrain.text import docstrings

EXTRACTOR_VERSION = 3  # part of the cache key; raised whenever the extracted text changes

# Import names of what is installed with us; what is missing is left out.
PACKAGES = re.findall(
    r"\w+",
    "numpy scipy pandas sklearn torch transformers datasets accelerate evaluate tokenizers "
    "huggingface_hub safetensors matplotlib PIL kornia pyarrow sympy networkx joblib jinja2 fsspec "
    "aiohttp httpx requests dill multiprocess dateutil regex tqdm yaml psutil",
)
_PROJECTS = dict(sklearn="scikit-learn", dateutil="python-dateutil", yaml="PyYAML", PIL="pillow")

MIN_SENTENCES = 2  # a document of one sentence has no next sentence
_SKIPPED_FOLDERS = re.findall(
    r"\S+", "test tests testing idlelib lib2to3 turtledemo site-packages dist-packages _vendor"
)
_SENTENCE_END = re.compile(r"[.!?][)\"']?(?=\s|$)")
# Names and numbers do not make a paragraph new: families of models repeat each other's text.
_PLAIN_WORD = re.compile(r"\b[a-z]+\b")


def embedded_documents() -> list[str]:
    """Return the documents of the embedded corpus, paragraphs separated by newlines.

    The order is fixed: topics, then the standard library, then packages as listed, modules by path.
    """
    path = Path(constants.HF_HOME) / "bert_pretrain" / f"docs-{embedded_key()}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    # All processes of a distributed run ask at once; one of them does the work.
    with FileLock(path.with_suffix(".lock")):
        try:
            record = unseal(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):  # not there yet, or damaged
            record = {"documents": _extract()}
            write_sealed(path, record)
    documents: list[str] = record["documents"]
    return documents


def embedded_key() -> str:
    """Return a hash of what the embedded corpus depends on: Python, packages and the extractor."""
    versions = {name: _version(name) for name in PACKAGES if package_folder(name)}
    parts = [EXTRACTOR_VERSION, platform.python_version(), sysconfig.get_path("stdlib"), versions]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _version(package: str) -> str:
    try:
        return metadata.version(_PROJECTS.get(package, package))
    except metadata.PackageNotFoundError:
        return "unknown"


def package_folder(name: str) -> Path | None:
    """Return the folder of an installed top-level package without importing it."""
    spec = importlib.util.find_spec(name)
    locations = list(spec.submodule_search_locations or ()) if spec else []
    return Path(locations[0]) if locations else None


def _modules() -> list[Path]:
    """Return the modules of the standard library and of the packages, without tests."""
    folders = [Path(sysconfig.get_path("stdlib")), *filter(None, map(package_folder, PACKAGES))]
    return [path for folder in folders for path in sorted(_python_files(folder))]


def _python_files(folder: Path) -> Iterator[Path]:
    for parent, subfolders, names in os.walk(folder):
        subfolders[:] = [name for name in subfolders if name not in _SKIPPED_FOLDERS]
        yield from (Path(parent, name) for name in names if name.endswith(".py"))


def _extract() -> list[str]:
    """Return the documents: topics first, then the modules in order."""
    texts = ["\n".join(paragraphs) for _, paragraphs in read_modules()]
    return [text for text in texts if len(_SENTENCE_END.findall(text)) >= MIN_SENTENCES]


def read_modules() -> list[tuple[Path, list[str]]]:
    """Read all modules in parallel; return of each the paragraphs that no earlier one had.

    Each topic of the language reference, which all lie in one module, is an entry of its own.
    """
    topics = Path(sysconfig.get_path("stdlib"), "pydoc_data", "topics.py")
    documents = docstrings.topic_paragraphs(topics) if topics.exists() else []
    modules = [path for path in _modules() if path != topics]
    paths = [topics] * len(documents) + modules
    documents += _paragraphs_of(modules)
    seen: set[str] = set()
    found = []
    for path, paragraphs in zip(paths, documents, strict=True):
        unique = []
        for paragraph in paragraphs:
            if (words := " ".join(_PLAIN_WORD.findall(paragraph))) not in seen:
                seen.add(words)
                unique.append(paragraph)
        found.append((path, unique))
    return found


def _paragraphs_of(modules: list[Path]) -> list[list[str]]:
    """Return the paragraphs of each module, read by one worker process per core.

    Workers run `docstrings.py` as a script: unlike multiprocessing this never imports the caller's
    `__main__` again, and unlike a fork it is safe beside threads.
    """
    num_workers = min(os.cpu_count() or 1, 16)
    # Every n-th module for one worker balances the load, since neighbours are of similar size.
    shares = [modules[worker::num_workers] for worker in range(num_workers)]
    with ThreadPoolExecutor(num_workers) as pool:
        results = list(pool.map(_run_worker, shares))
    paragraphs: list[list[str]] = [[]] * len(modules)
    for worker, result in enumerate(results):
        paragraphs[worker::num_workers] = result
    return paragraphs


def _run_worker(modules: list[Path]) -> list[list[str]]:
    # -I keeps the script's folder off the import path, where its modules would hide those of the
    # standard library; -W hides warnings about string escapes in other people's modules.
    command = [sys.executable, "-I", "-W", "ignore", docstrings.__file__]
    paths = json.dumps([str(path) for path in modules])
    text = subprocess.check_output(command, input=paths, encoding="utf-8")
    paragraphs: list[list[str]] = json.loads(text)
    return paragraphs
