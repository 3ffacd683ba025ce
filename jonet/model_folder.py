"""The model folder on disk: `model.json`, and the arrays and codes that it names with their checksums.

This module works on plain values (`Content`); `jonet.model` turns them into a `Model`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import numpy as np

import jonet.config
from jonet import products
from jonet.chips import Precision
from jonet.codes import Codes, read_npz, write_npz
from jonet.data.sampling import FRAMES
from jonet.errors import CheckpointError, InputError, shown
from jonet.networks.bound import BoundNetwork
from jonet.storage import atomic, identity, locks

VERSION = 2  # of the model folder's format
LOCK = ".lock"
EXPECTED = "a model folder (with model.json in it) or a run folder (with model/model.json in it)"
NAMES = {"version", "kind", "network", "frame", "fitting", "surfaces", "precision", "inputs", "history"}
NAMES |= {"files", "checksums"}  # all names in model.json but its own checksum
_MODEL_FILE = re.compile(r"model\.json|\.lock|(arrays|codes)(-[0-9a-f]{8})?\.npz")


class Content(NamedTuple):
    """What a model folder contains.

    kind: the network's kind.  frame: "sphere" or "cube".  network, fitting, surfaces, inputs: configs as plain JSON
    values (inputs: None for a network without an encoder).  precision: of matrix products.  history: where the model
    came from, plain JSON values.  shared, batch_stats: nested dicts of arrays.  prior: arrays of the prior by name, or
    None.  codes: of the training shapes, or None.
    """

    kind: str
    frame: str
    network: dict[str, Any]
    fitting: dict[str, Any]
    surfaces: dict[str, Any]
    precision: Precision
    inputs: dict[str, Any] | None
    history: dict[str, Any]
    shared: dict[str, Any]
    batch_stats: dict[str, Any]
    prior: dict[str, np.ndarray] | None
    codes: Codes | None


def network_digest(kind: str, frame: str, network: BoundNetwork) -> str:
    """Identifies a network by 16 hex digits of a SHA-256 over its kind, frame, options and arrays."""
    found = hashlib.sha256(f"{kind} {frame}".encode())
    specs = jonet.config.to_dict(network.specs)
    specs = jonet.config.to_dict(jonet.config.from_dict(type(network.specs), specs))  # an int 1 for a float is 1.0
    found.update(json.dumps(specs, sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path((network.stored, network.batch_stats)):
        found.update(jax.tree_util.keystr(path).encode())
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()[:16]


def check_replaceable(folder: str | Path) -> None:
    """CheckpointError unless a folder is new, empty, or a model folder with no files but a model's."""
    folder = Path(folder)
    if atomic.is_free(folder):
        return
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is a file, so no model is written there; name a new folder")
    others = [
        path.name for path in folder.iterdir() if not (_MODEL_FILE.fullmatch(path.name) or atomic.is_temporary(path))
    ]
    if others or not (folder / "model.json").is_file():
        what = f"contains {min(others)!r}, which is not part of a model" if others else "contains no model"
        raise CheckpointError(f"{folder} {what}, so it is not replaced; name a new folder for the model")


def write(folder: str | Path, content: Content) -> None:
    """Writes a model folder that `read` reads.

    The folder must be new, empty, or a model folder.  In a model folder the new arrays are written next to the old
    ones, and the old model stays readable until model.json is replaced.  Raises CheckpointError for a folder that
    contains anything else.
    """
    folder = Path(folder)
    if atomic.is_free(folder):
        with atomic.new_folder(folder) as temporary:
            _write_files(temporary, content)
        return
    check_replaceable(folder)
    with locks.locked(folder / LOCK, wait=True):
        named = _write_files(folder, content)
        for path in folder.glob("*.npz"):
            if path.name not in named:
                atomic.remove_file(path)
        atomic.sweep(folder)


def _write_files(folder: Path, content: Content) -> Collection[str]:
    """Writes arrays and codes under unused names, then model.json, which names them; returns these names."""
    arrays = {**_flatten("shared", content.shared), **_flatten("batch_stats", content.batch_stats)}
    arrays |= {f"prior/{name}": np.asarray(value) for name, value in (content.prior or {}).items()}
    files = {"arrays": _free_name(folder, "arrays")}
    write_npz(folder / files["arrays"], arrays)
    if content.codes is not None:
        files["codes"] = _free_name(folder, "codes")
        content.codes.save(folder / files["codes"])
    about = {
        "version": VERSION,
        "kind": content.kind,
        "network": content.network,
        "frame": content.frame,
        "fitting": content.fitting,
        "surfaces": content.surfaces,
        "precision": content.precision,
        "inputs": content.inputs,
        "history": content.history,
        "files": files,
        "checksums": {name: identity.digest(folder / name) for name in files.values()},
    }
    atomic.write_json(folder / "model.json", about | {"checksum": jonet.config.digest(about)})
    return files.values()


def _free_name(folder: Path, stem: str) -> str:
    name = f"{stem}.npz"
    return name if not (folder / name).exists() else f"{stem}-{secrets.token_hex(4)}.npz"


def read(folder: str | Path, kinds: Iterable[str]) -> Content:
    """The content of a model folder, or of a run folder's model.

    kinds: the known kinds of networks.  Raises InputError for an argument that is not a path, and CheckpointError for
    a path that is not a model folder, and for files that are missing or damaged.
    """
    folder = _checked_path(folder)
    if (folder / "model" / "model.json").exists():
        folder = folder / "model"
    about = _read_json(folder, list(kinds))
    files = about["files"]
    for name in files.values():
        if not _MODEL_FILE.fullmatch(name) or not _is_intact(folder / name, about["checksums"].get(name)):
            raise CheckpointError(f"{folder / name} is missing or damaged: its checksum is not the recorded one")
    arrays = read_npz(folder / files["arrays"])
    if unknown := [name for name in arrays if name.partition("/")[0] not in ("shared", "batch_stats", "prior")]:
        raise CheckpointError(f"{folder / files['arrays']} has an array {min(unknown)!r}, which no model has")
    try:
        shared, batch_stats = _nest("shared", arrays), _nest("batch_stats", arrays)
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / files['arrays']} has arrays of which one is within another") from error
    prior = {name.removeprefix("prior/"): value for name, value in arrays.items() if name.startswith("prior/")}
    return Content(
        kind=about["kind"],
        frame=about["frame"],
        network=about["network"],
        fitting=about["fitting"],
        surfaces=about["surfaces"],
        precision=about.get("precision", products.DEFAULT),
        inputs=about.get("inputs"),
        history=about["history"],
        shared=shared,
        batch_stats=batch_stats,
        prior=prior or None,
        codes=Codes.load(folder / files["codes"]) if "codes" in files else None,
    )


def _checked_path(folder) -> Path:
    if not isinstance(folder, str | os.PathLike) or not str(folder) or "\0" in str(folder):
        raise InputError(f"folder is {shown(folder)}, but must be the path of {EXPECTED}")
    path = Path(folder)
    if path.is_file():
        raise CheckpointError(
            f"{folder} is a file, not a model; expected is {EXPECTED}; on the command line the model is the first "
            "argument"
        )
    if not path.is_dir():
        raise CheckpointError(f"{folder} does not exist; expected is {EXPECTED}")
    return path


def _read_json(folder: Path, kinds: list[str]) -> dict[str, Any]:
    """The content of model.json; CheckpointError if it is missing, damaged, or not one that `write` writes."""
    path = folder / "model.json"
    try:
        about = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} contains no trained model; expected is {EXPECTED}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(about, dict) or about.get("version") != VERSION or about.get("kind") not in kinds:
        version, kind = [about.get(name) for name in ("version", "kind")] if isinstance(about, dict) else (None, None)
        raise CheckpointError(
            f"{folder} contains a model of version {version} and kind {kind!r}, "
            f"but this jonet reads version {VERSION} and the kinds {', '.join(kinds)}"
        )
    if about.pop("checksum", None) != jonet.config.digest(about):
        raise CheckpointError(f"{path} is damaged: its checksum is not the recorded one")
    groups = ("network", "fitting", "surfaces", "history", "checksums")
    wrong = [name for name in groups if not isinstance(about.get(name), dict)]
    files = about.get("files")
    if (
        not isinstance(files, dict)
        or "arrays" not in files
        or not all(isinstance(name, str) for name in files.values())
    ):
        wrong.append("files")
    if about.get("frame") not in list(FRAMES):
        wrong.append("frame")
    if about.get("precision", products.DEFAULT) not in get_args(Precision):
        wrong.append("precision")
    wrong += sorted(about.keys() - NAMES)
    if wrong:
        raise CheckpointError(f"{path} is damaged: its entry {shown(wrong[0])} is not one that jonet writes")
    return about


def _is_intact(path: Path, checksum: str | None) -> bool:
    """Whether a file has the recorded digest."""
    return path.is_file() and checksum is not None and identity.digest(path) == checksum


def _flatten(root: str, tree) -> dict[str, np.ndarray]:
    """The arrays of a nested dict by their path: `root/name/…`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join([root, *(entry.key for entry in path)]): np.asarray(leaf) for path, leaf in leaves}


def _nest(root: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The inverse of `_flatten`: the nested dict of the arrays whose path starts with `root`."""
    tree: dict[str, Any] = {}
    for name, value in arrays.items():
        first, *path, last = name.split("/")
        if first == root:
            inner = tree
            for part in path:
                inner = inner.setdefault(part, {})
            inner[last] = value
    return tree
