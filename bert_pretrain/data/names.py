"""What the names of files, data sets and models lead to, and what to say where that is nothing."""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from bert_pretrain.data.run_folder import list_checkpoints
from bert_pretrain.errors import InputError


def existing_files(pattern: str, *, parameter: str = "data_files") -> list[Path]:
    """Return the files that a path or a glob means, sorted.

    Raises:
        InputError: there is none; `parameter` gave the pattern.
    """
    if Path(pattern).is_file():
        return [Path(pattern)]
    found = sorted(path for path in map(Path, glob.glob(pattern, recursive=True)) if path.is_file())
    if not found:
        raise InputError(
            f"there is no file {pattern!r}",
            advice=f"`{parameter}` takes paths and globs of existing files",
        )
    for path in found:
        refuse_undecodable(path)
    return found


def refuse_undecodable(path: Path) -> None:
    """Raise `InputError` if the name of a file is no Unicode: no record could hold it."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        shown = str(path).encode("utf-8", "backslashreplace").decode()
        raise InputError(
            f"the name of {shown} is not valid UTF-8", advice="rename the file or its folder"
        ) from error


def files_fingerprint(files: Iterable[Path], *more: str) -> str:
    """Return a hash of `more` and of the paths, sizes and times of files: it tells of changes."""
    sha256 = hashlib.sha256()
    for path in files:
        # A dangling link is a bad image, which whoever reads it reports.
        status = path.stat() if path.exists() else path.lstat()
        identity = [str(path.resolve()), status.st_size, status.st_mtime_ns]
        sha256.update(json.dumps(identity).encode())
    sha256.update(json.dumps(more).encode())
    return sha256.hexdigest()


def is_hub_id(name: str) -> bool:
    """Return whether a name reads as one of the Hub, and leads to nothing on this machine."""
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None and not Path(name).exists()


def is_saved_dataset(folder: Path) -> bool:
    """Return whether a folder holds a data set that `datasets` saved."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def refuse_misnamed_model(
    name: str, *, parameter: str = "model", sizes: Collection[str] = ()
) -> None:
    """Explain why no model was found under a name, if the name itself tells why.

    To be called when loading has failed, since a Hub id may look like a path. `parameter` gave the
    name, and takes named `sizes` too.

    Raises:
        InputError: the name is a run's folder, a file, or a path that does not exist.
    """
    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file():
        _refuse_run(path, parameter)
    elif path.is_file():
        raise InputError(
            f"{name!r} is a file",
            advice=f"pass the folder of a model, with its config.json, as `{parameter}`",
        )
    refuse_missing_folder(name, what="a transformers model", parameter=parameter, sizes=sizes)


def refuse_missing_folder(
    name: str, *, what: str, parameter: str, sizes: Collection[str] = ()
) -> None:
    """Raise `InputError` if a name looks like a path, not like a Hub id, and nothing is there.

    `what` is expected there; for the others see `refuse_misnamed_model`.
    """
    parent = name.rpartition("/")[0]
    looks_like_path = (
        name.startswith((".", "/", "~"))
        or name.endswith(("/", "/final"))
        or name.count("/") > 1
        or "\\" in name
        or (parent != "" and Path(parent).is_dir())
    )
    if looks_like_path and not Path(name).exists():
        or_size = f", or one of {', '.join(sizes)}" if sizes else ""
        raise InputError(
            f"there is no folder {name!r}",
            advice=f"pass the folder or Hub id of {what} as `{parameter}`{or_size}",
        )


def _refuse_run(folder: Path, parameter: str) -> None:
    """Raise `InputError` if a folder is a run's, and name the model in it."""
    if (folder / "final/config.json").is_file():
        raise InputError(
            f"{str(folder)!r} is the folder of a run",
            advice=f"pass its model, {folder / 'final'}, as `{parameter}`",
        )
    if checkpoints := list_checkpoints(folder / "checkpoints"):
        raise InputError(
            f"{str(folder)!r} is the folder of a run without final/ yet",
            advice=f"pass its newest checkpoint, {checkpoints[-1]}, as `{parameter}`",
        )
    if (folder / "checkpoints").is_dir() or (folder / "run.json").is_file():
        raise InputError(
            f"{str(folder)!r} is a run that holds neither a complete checkpoint nor final/ yet",
            advice=f"pass another `{parameter}`, or wait for the run's first checkpoint",
        )
