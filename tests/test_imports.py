"""What the core needs of its surroundings: few libraries, and none of their private names."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "bert_pretrain"

# A GPU is often rented with torch, transformers and accelerate alone on it.
ABSENT = (
    *("datasets", "evaluate", "kornia", "matplotlib", "sklearn", "pandas", "scipy"),
    *("sentencex", "langcodes", "icu4py"),
)
CORE = (
    *(f"models.{path.stem}" for path in sorted((PACKAGE / "models").glob("[a-z]*.py"))),
    *(f"losses.{path.stem}" for path in sorted((PACKAGE / "losses").glob("[a-z]*.py"))),
    *(f"training.{path.stem}" for path in sorted((PACKAGE / "training").glob("[a-z]*.py"))),
    *(f"objectives.{path.stem}" for path in sorted((PACKAGE / "objectives").glob("[a-z]*.py"))),
    "text.collator",
    "images.collator",
    "data.loader",
)

# Private names of others that are used all the same, each with its reason.
EXCEPTIONS = {
    "_asdict": "a public method of named tuples",
    "_no_split_modules": "a model class of transformers declares by it how it may be divided",
    "_replace": "a public method of named tuples",
    "_attn_implementation": "a configuration of transformers has no public name for it",
    "_dynamo": "torch.compiler has no name of its own for the limit of recompilation (torch 2.13)",
    "_exit": "os._exit is documented: a child process ends without the parent's clean-up",
}


def test_the_core_needs_a_few_libraries_alone() -> None:
    program = (
        "import importlib, sys\n"
        f"for name in {ABSENT!r}: sys.modules[name] = None  # any import of it fails\n"
        f"for name in {CORE!r}: importlib.import_module('bert_pretrain.' + name)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_list_of_commands_needs_no_library_at_all() -> None:
    program = (
        "import sys\n"
        "from bert_pretrain.__main__ import main\n"
        "assert main(['--help']) == 0\n"
        "assert not {'torch', 'transformers', 'numpy', 'datasets'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "finetune" in done.stdout


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_help_and_refused_flags_do_not_wait_for_torch(command: str) -> None:
    program = (
        "import sys\n"
        "sys.modules['torch'] = None  # any import of it fails\n"
        f"from bert_pretrain.commands.{command} import main\n"
        "for flags in (['--help'], ['--weight_decay', 'heavy'], ['--absent']):\n"
        "    try: main(flags)\n"
        "    except SystemExit as stopped: print(f'{flags} ends with {stopped.code}')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "['--help'] ends with 0" in done.stdout and "--weight_decay is 'heavy'" in done.stderr
    assert done.stdout.count("ends with 2") == 2


def private_names(tree: ast.Module) -> list[str]:
    """Return the private attributes of other objects than `self` that a file uses."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            owner = node.value
            if not (isinstance(owner, ast.Name) and owner.id in ("self", "cls")):
                found.append(node.attr)
        elif isinstance(node, ast.ImportFrom):
            found += [alias.name for alias in node.names if is_private(alias.name)]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            names = node.args[1:2] if node.func.id in ("getattr", "setattr", "hasattr") else []
            constants = [str(name.value) for name in names if isinstance(name, ast.Constant)]
            found += [name for name in constants if is_private(name)]
    return found


def is_private(name: str) -> bool:
    # torch documents its functions of many tensors, which its own optimisers are made of.
    is_documented = name.startswith("_foreach_") or name.endswith("__")
    return name.startswith("_") and not is_documented


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_nothing_private_of_others_is_used(path: Path) -> None:
    found = set(private_names(ast.parse(path.read_text()))) - set(EXCEPTIONS)
    assert not found


def test_classes_are_not_swapped() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    assert not (isinstance(target, ast.Attribute) and target.attr == "__class__")


def test_only_commands_and_their_flags_are_spelt_as_flags() -> None:
    """Rooms speak of parameters; a command spells them (docstrings may mention flags)."""
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0]
        # A model card shows the command that made the model.
        if room in ("commands", "config", "__main__.py") or path.stem == "model_card":
            continue
        tree = ast.parse(path.read_text())
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        texts = [
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in docstrings
        ]
        words = [word for text in texts for word in text.split()]
        found = [word for word in words if re.match(r"[`'\"(]*--[a-z]", word)]
        assert not found, path
