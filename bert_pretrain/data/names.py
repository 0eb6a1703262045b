"""What to say of the name of a model or data set at which there is none; every command says it alike."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from bert_pretrain.errors import InputError


def refuse_misnamed_model(
    name: str, *, parameter: str = "model", sizes: Collection[str] = ()
) -> None:
    """Raise `InputError` if a name is the folder of a run where its model is meant, a file, or a path to nothing.

    To be called when loading has failed, since a Hub id may look like a path; returns if nothing of
    this is the matter.

    Args:
        name: folder or Hub id, as given.
        parameter: that gave it.
        sizes: named sizes that the flag takes too.
    """
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            _refuse_run(path, parameter)
    elif path.exists():
        raise InputError(
            f"{name!r} is a file",
            advice=f"pass the folder of a model, with its config.json, as `{parameter}`",
        )
    refuse_missing_folder(name, what="a transformers model", parameter=parameter, sizes=sizes)


def refuse_missing_folder(
    name: str, *, what: str, parameter: str, sizes: Collection[str] = ()
) -> None:
    """Raise `InputError` if a name is hardly a Hub id but there is no such folder.

    To be called when loading has failed.

    Args:
        name: folder or Hub id, as given.
        what: is expected there.
        parameter: that gave it.
        sizes: named sizes that the flag takes too.
    """
    if _looks_like_path(name) and not Path(name).exists():
        raise InputError(
            f"there is no folder {name!r}; pass the folder or Hub id of {what} as `{parameter}`"
            + (f", or one of {', '.join(sizes)}" if sizes else "")
        )


def _refuse_run(folder: Path, parameter: str) -> None:
    if (folder / "final/config.json").is_file():
        raise InputError(
            f"{str(folder)!r} is the folder of a run",
            advice=f"pass its model, {folder / 'final'}, as `{parameter}`",
        )
    steps = [
        path.parent.name.removeprefix("step-")
        for path in folder.glob("checkpoints/step-*/config.json")
    ]
    complete = [
        step for step in steps if step.isdecimal()
    ]  # not step-000200.tmp, which a kill leaves
    if complete:
        newest = folder / "checkpoints" / f"step-{max(complete, key=int)}"
        raise InputError(
            f"{str(folder)!r} is the folder of a run without final/ yet",
            advice=f"pass its newest checkpoint, {newest}, as `{parameter}`",
        )
    if (folder / "checkpoints").is_dir() or (folder / "run.json").is_file():
        raise InputError(
            f"{str(folder)!r} is a run that holds neither a complete checkpoint nor final/ yet",
            advice=f"pass another `{parameter}`, or wait for the run's first checkpoint",
        )


def _looks_like_path(name: str) -> bool:
    """Return whether it is hardly meant as a Hub id, `name` or `user/name`."""
    parent = name.rpartition("/")[0]
    return (
        name.startswith((".", "/", "~"))
        or name.endswith(("/", "/final"))
        or name.count("/") > 1
        or "\\" in name
        or (parent != "" and Path(parent).is_dir())
    )
