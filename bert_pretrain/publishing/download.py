"""What is fetched from the Hub beside models: checkpoints to continue from, and prepared corpora.

Both land in the Hugging Face cache, where several processes may ask for them at once and an
interrupted download continues.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from huggingface_hub import HfApi, constants

from bert_pretrain.errors import InputError
from bert_pretrain.publishing.upload import STATE_FOLDER, diagnose

_REPO_ID = r"[\w.-]+/[\w.-]+"
_CHECKPOINT = re.compile(rf"({_REPO_ID})@([\w./-]+)")
_MANIFEST = "manifest.json"  # of a prepared corpus


def is_hub_checkpoint(name: str) -> bool:
    """Return whether a name reads `owner/name@revision` and is no path that exists."""
    return _CHECKPOINT.fullmatch(name) is not None and not Path(name).exists()


def download_checkpoint(name: str) -> Path:
    """Return the folder of a checkpoint that was pushed beside its export.

    Args:
        name: `owner/name@revision`.

    Raises:
        InputError: there is no such repository or revision, or no training state in it.
    """
    match = _CHECKPOINT.fullmatch(name)
    assert match is not None
    repo_id, revision = match.groups()
    try:
        snapshot = HfApi(endpoint=constants.ENDPOINT).snapshot_download(
            repo_id, revision=revision, allow_patterns=f"{STATE_FOLDER}/*"
        )
    except Exception as error:  # of the network, of the Hub, of the disk
        raise InputError(
            f"`resume_from_checkpoint` {name} cannot be fetched from the Hub "
            f"({diagnose(error)[1]})",
            advice="pass owner/name@revision of a repository that this machine's token may read, "
            "or a checkpoint folder",
        ) from error
    folder = Path(snapshot) / STATE_FOLDER
    if not folder.is_dir():
        raise InputError(
            f"`resume_from_checkpoint` {name} holds a model but no training state: it was pushed "
            "without `hub_push_state`",
            advice=f"begin a new run from its weights with `model_name_or_path` {repo_id}",
        )
    return folder


def download_corpus(name: str) -> Path | None:
    """Return the folder of a prepared corpus of the Hub, if `name` is one.

    Args:
        name: `owner/name`.
    """
    if re.fullmatch(_REPO_ID, name) is None or Path(name).exists():
        return None
    api = HfApi(endpoint=constants.ENDPOINT)
    try:
        manifest = Path(api.hf_hub_download(name, _MANIFEST, repo_type="dataset"))
        if not {"format_version", "tokenizer", "counts"} <= set(json.loads(manifest.read_text())):
            return None
        patterns = ["*.json", "*.arrow", "*.npy"]
        return Path(api.snapshot_download(name, repo_type="dataset", allow_patterns=patterns))
    except Exception:  # no such data set or no answer: whoever reads data sets says so
        return None
