"""What to say when no model or data set is found under a name; all commands say it through here."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from bert_pretrain.data.run_folder import list_checkpoints
from bert_pretrain.errors import InputError


def refuse_misnamed_model(
    name: str, *, parameter: str = "model", sizes: Collection[str] = ()
) -> None:
    """Explain why no model was found under a name, if the name itself tells why.

    To be called when loading has failed, since a Hub id may look like a path.

    Args:
        name: folder or Hub id, as given.
        parameter: the parameter that gave it.
        sizes: named sizes that the parameter takes too.

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

    To be called when loading has failed.

    Args:
        name: folder or Hub id, as given.
        what: is expected there.
        parameter: the parameter that gave it.
        sizes: named sizes that the parameter takes too.
    """
    if _looks_like_path(name) and not Path(name).exists():
        raise InputError(
            f"there is no folder {name!r}",
            advice=f"pass the folder or Hub id of {what} as `{parameter}`"
            + (f", or one of {', '.join(sizes)}" if sizes else ""),
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


def _looks_like_path(name: str) -> bool:
    parent = name.rpartition("/")[0]
    return (
        name.startswith((".", "/", "~"))
        or name.endswith(("/", "/final"))
        or name.count("/") > 1
        or "\\" in name
        or (parent != "" and Path(parent).is_dir())
    )
