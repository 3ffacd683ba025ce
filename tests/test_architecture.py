"""The order of imports: every room imports only what lies below it, and data/ never imports jax."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = [
    "jonet.errors",
    "jonet.interrupt",
    "jonet.storage",
    "jonet.config",
    "jonet.parallel",
    "jonet.data",
    "jonet.networks",
    "jonet.training",
    "jonet.inference",
    "jonet.evaluation",
    "jonet.codes",
    "jonet.arguments",
    "jonet.model",
    "jonet.bulk",
    "jonet.tasks",
    "jonet.run",
    "jonet.learn",
    "jonet.commands",
    "jonet.__main__",
    "experiments",
]
FILES = sorted([*ROOT.glob("jonet/**/*.py"), *ROOT.glob("experiments/**/*.py")])


def module(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def room(name: str) -> int | None:
    return next((i for i, prefix in enumerate(ORDER) if name == prefix or name.startswith(prefix + ".")), None)


def imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide what a file depends on"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: module(p))
def test_imports_run_downwards(path):
    here = module(path)
    if here in ("jonet", "experiments"):
        return
    place = room(here)
    assert place is not None, f"{here} has no place in the order of imports"
    for name in imports(path):
        if name == "jonet" or (name.startswith("jonet.") and room(name) is None):
            assert place == ORDER.index("experiments") or here == "jonet.__main__" or name != "jonet", (
                f"{here} imports the front door"
            )
            continue
        below = room(name)
        assert below is None or below <= place, f"{here} imports {name}, which lies above it"


@pytest.mark.parametrize("path", sorted((ROOT / "jonet/data").glob("**/*.py")), ids=lambda p: module(p))
def test_workers_never_import_jax(path):
    if path.name == "batches.py":
        return
    for name in imports(path):
        assert name.split(".")[0] not in ("jax", "flax", "optax", "orbax", "chex"), f"{path} imports {name}"
        assert not name.startswith(("jonet.parallel", "jonet.data.batches")), f"{path} imports {name}, which needs jax"


def test_folders_hand_names_on_and_define_nothing():
    for path in FILES:
        if path.name == "__init__.py" and path.parent.name not in ("jonet",):
            nodes = [n for n in ast.parse(path.read_text()).body if not isinstance(n, ast.Import | ast.ImportFrom)]
            named = [n for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)]
            assert not named, f"{path} defines {named[0].name}"


def test_no_rooms_without_a_subject():
    for path in FILES:
        assert path.stem not in ("utils", "common", "helpers", "misc"), path
