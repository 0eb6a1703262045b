"""The rooms of the package and their doors: which folder may import from which."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "bert_pretrain"

# errors and hardware stand outside the rooms: everyone may ask them.
MAY_IMPORT = {
    "config": set(),
    "data": set(),
    "losses": set(),
    "text": {"data"},
    "images": {"data"},
    "models": {"data", "losses"},
    "downstream": {"data", "text", "images", "models"},
    "evaluation": {"data", "text", "images", "models", "downstream"},
    "embedding": {"data", "text", "images", "models", "downstream", "evaluation"},
    "publishing": {"data", "models"},
    "objectives": {"data", "text", "images", "losses", "models", "evaluation", "publishing"},
    "training": {"data", "objectives.interface"},
    "commands": {
        "config",
        "data",
        "downstream",
        "embedding",
        "evaluation",
        "images",
        "models",
        "objectives",
        "publishing",
        "text",
        "training",
    },
}
EVERYONES = {"errors", "hardware"}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE)


def imports_of(path: Path) -> set[str]:
    """Return the modules of this package that a file imports, as `room.module`."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{path}: imports here name the whole path"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {
        name.removeprefix("bert_pretrain.") for name in found if name.startswith("bert_pretrain.")
    }


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_through_its_doors_alone(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0]
    allowed = MAY_IMPORT[room] | EVERYONES | {room}
    for name in imports_of(path):
        assert any(f"{name}.".startswith(f"{door}.") for door in allowed), f"{room} imports {name}"


def test_no_doors_lead_round_in_a_circle() -> None:
    rooms = {room: {door.split(".")[0] for door in doors} for room, doors in MAY_IMPORT.items()}
    rooms["training"] -= {"objectives"}  # the interface alone, which imports from data
    while rooms:
        free = {room for room, doors in rooms.items() if not doors & rooms.keys()}
        assert free, rooms
        rooms = {room: doors for room, doors in rooms.items() if room not in free}


def test_the_loop_knows_no_modality() -> None:
    text = (PACKAGE / "training/trainer.py").read_text()
    for word in ("input_ids", "pixel_values", "mlm", "nsp", "tokenizer"):
        assert word not in text


def test_backward_is_called_in_the_trainer_alone() -> None:
    callers = [path.relative_to(PACKAGE) for path in MODULES if ".backward(" in path.read_text()]
    assert callers == [Path("training/trainer.py")]
