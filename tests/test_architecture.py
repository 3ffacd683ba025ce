"""The order of imports: a file imports only from earlier layers, there are no cycles, worker processes need no jax."""

import ast
from pathlib import Path

import pytest
from paths import ROOT

import jonet

ORDER = [
    "jonet.version",
    "jonet.errors",
    "jonet.wording",
    "jonet.checks",
    "jonet.resources",
    "jonet.interrupt",
    "jonet.progress",
    "jonet.storage",
    "jonet.config",
    "jonet.settings",
    "jonet.parser",
    "jonet.chips",
    "jonet.parallel",
    "jonet.products",
    "jonet.device_memory",
    "jonet.geometry",
    "jonet.rendering",
    "jonet.data",
    "jonet.formats",
    "jonet.networks",
    "jonet.training",
    "jonet.inference",
    "jonet.evaluation",
    "jonet.codes",
    "jonet.arguments",
    "jonet.fields",
    "jonet.representation",
    "jonet.model_folder",
    "jonet.model",
    "jonet.bulk",
    "jonet.tasks",
    "jonet.run",
    "jonet.commands",
    "jonet.__main__",
    "experiments",
]
WITHOUT_JAX = ("jonet.geometry", "jonet.rendering", "jonet.data", "jonet.formats", "jonet.storage")
JAX = ("jax", "jaxlib", "flax", "optax", "orbax", "chex")
FILES = sorted([*ROOT.glob("jonet/**/*.py"), *ROOT.glob("experiments/**/*.py")])


def module(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def layer(name: str) -> int | None:
    """The place of a module in ORDER; None for modules that are not ours."""
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
def test_files_import_only_from_earlier_layers(path):
    here = module(path)
    if here in ("jonet", "experiments"):
        return
    place = layer(here)
    assert place is not None, f"{here} has no place in the order of imports"
    for name in imports(path):
        if name == "jonet" or (name.startswith("jonet.") and layer(name) is None):
            assert place == ORDER.index("experiments") or here == "jonet.__main__" or name != "jonet", (
                f"{here} imports the package's public names"
            )
            continue
        imported = layer(name)
        assert imported is None or imported <= place, f"{here} imports {name}, which is in a later layer"


def graph() -> dict[str, set[str]]:
    """The modules of jonet and experiments that each of them imports, anywhere in the file."""
    files = {module(path): path for path in FILES}
    found = {}
    for here, path in files.items():
        names = {name if name in files else name.rpartition(".")[0] for name in imports(path)}
        found[here] = {name for name in names if name in files and name not in (here, "jonet")}
    return found


def dependencies(edges: dict[str, set[str]], start: str) -> set[str]:
    """What a module imports, directly or indirectly."""
    seen, new = set(), set(edges[start])
    while new:
        seen |= new
        new = set().union(*(edges[name] for name in new)) - seen
    return seen


def test_there_are_no_import_cycles():
    edges = graph()
    assert len(edges) > 100
    assert not [name for name in edges if name in dependencies(edges, name)]


def test_modules_of_worker_processes_never_import_jax():
    """Sampling and storing shapes, with all their dependencies."""
    edges, files = graph(), {module(path): path for path in FILES}
    workers = [name for name in edges if name.startswith(WITHOUT_JAX)]
    for name in sorted(set(workers).union(*(dependencies(edges, name) for name in workers))):
        for imported in imports(files[name]):
            assert imported.split(".")[0] not in JAX, f"{name} imports {imported}"


def test_init_files_define_nothing():
    for path in FILES:
        if path.name == "__init__.py" and path.parent.name not in ("jonet",):
            nodes = [n for n in ast.parse(path.read_text()).body if not isinstance(n, ast.Import | ast.ImportFrom)]
            named = [n for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)]
            assert not named, f"{path} defines {named[0].name}"


def test_type_checkers_see_the_public_names():
    block = next(node for node in ast.parse(Path(jonet.__file__).read_text()).body if isinstance(node, ast.If))
    seen = {alias.asname: node.module for node in block.body for alias in node.names}
    assert seen == jonet._MODULES and sorted(seen) == jonet.__all__


def test_no_file_is_named_utils():
    for path in FILES:
        assert path.stem not in ("utils", "common", "helpers", "misc"), path
