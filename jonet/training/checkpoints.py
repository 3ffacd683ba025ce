"""Checkpoints of the whole training state with Orbax: written in the background, and atomically."""

from __future__ import annotations

import contextlib
import logging
import zlib
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from jonet import parallel
from jonet.errors import CheckpointError
from jonet.storage import atomic

_log = logging.getLogger(__name__)


class OtherTraining(CheckpointError):
    """The checkpoints are intact, but belong to another training run."""


class Checkpoints:
    """The checkpoints in a folder: the latest ones, and separately the best one by validation.

    folder: local, shared by all processes.  identity: of the training run; a checkpoint of another one is refused.
    keep: number of latest checkpoints that are kept; an older one serves if the last one is damaged.
    """

    def __init__(self, folder: str | Path, identity: str = "", keep: int = 2):
        self.folder, self.identity = Path(folder).absolute(), identity
        self._latest = self._manager("latest", keep)
        self._best = self._manager("best", 1)

    def _manager(self, name: str, keep: int) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        return ocp.CheckpointManager(self.folder / name, options=options)

    def save(self, step: int, tree, meta: dict, best: bool = False) -> None:
        """Saves a tree of arrays and a JSON-serializable dict; returns once the arrays are copied, before the disk has
        them (see `wait`)."""
        manager = self._best if best else self._latest
        if step in manager.all_steps():
            return  # a resumed run repeats steps that were saved before, with the same bits
        meta = {"meta": meta, "checksums": _checksums(tree), "identity": self.identity}
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(_named(tree)), meta=ocp.args.JsonSave(meta))
        with self._writing():
            manager.save(step, args=arguments, force=best)  # else Orbax drops a best state of a step below that it has

    def restore(self, like, best: bool = False):
        """The newest intact checkpoint as (tree, meta), or None if there are no checkpoints.

        like: a tree of arrays, or of shapes with shardings, of the same structure.  A checkpoint that cannot be read is
        reported and moved to the subfolder `unread`, and the one before it is tried.
        Raises CheckpointError if there are checkpoints and none is intact, or if they are of another training run.
        """
        manager = self._best if best else self._latest
        self.wait()  # for what is being saved, and for what Orbax removes meanwhile
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        damaged = []
        for step in sorted(manager.all_steps(), reverse=True):
            try:
                found = self._read(manager, step, like)
            except OtherTraining:
                raise
            except Exception as error:  # whatever a damaged file makes Orbax or TensorStore raise
                damaged.append((step, _said(error)))
                continue
            for bad, reason in damaged:
                _log.warning("checkpoint %d in %s is damaged (%s); continuing from %d", bad, self.folder, reason, step)
            self._set_aside(manager, [bad for bad, _ in damaged])
            return found
        if damaged:
            step, reason = damaged[0]
            raise CheckpointError(
                f"{self.folder}: no checkpoint fits this run or is intact (newest: step {step}: {reason}); "
                "check that network and folder belong together, or start in a new folder"
            )
        return None

    def _set_aside(self, manager, steps: list[int]) -> None:
        """Moves unreadable checkpoints to `unread`, since their steps will be saved again.

        They are not deleted: the cause may have been the disk, and the files may be intact.
        """
        for step in steps if parallel.is_main() else ():
            aside = self.folder / "unread"
            aside.mkdir(exist_ok=True)
            moved = atomic.move_to(manager.directory / str(step), aside)
            _log.warning("the unreadable checkpoint was moved to %s", moved)
        parallel.from_main(None)  # a barrier: the other processes list the folder after the move
        manager.reload()

    def _read(self, manager, step: int, like):
        about = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
        if about.get("identity", self.identity) != self.identity:
            raise OtherTraining(
                f"{self.folder}: its checkpoints are of other shapes or options; use those again, or remove the "
                "folder to start a new training"
            )
        found = manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(_named(like))))

        def leaf_of(path, leaf):
            if _size(leaf):
                return found.state[_name(path)]
            return jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)

        tree = jax.tree_util.tree_map_with_path(leaf_of, like)
        if _checksums(tree) != about["checksums"]:
            raise CheckpointError("its arrays do not give the checksums that were written with them")
        return tree, about["meta"]

    def wait(self) -> None:
        """Returns when everything that was saved is on disk."""
        with self._writing():
            self._latest.wait_until_finished()
            self._best.wait_until_finished()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns errors of Orbax or TensorStore on a full or failing disk into a CheckpointError of one sentence."""
        try:
            yield
        except Exception as error:
            raise CheckpointError(
                f"{self.folder}: a checkpoint cannot be written ({_said(error)}); fix that, and run again to resume"
            ) from error

    def close(self) -> None:
        """Waits until everything is written, and closes the folder."""
        with self._writing():
            self._latest.close()
            self._best.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _said(error: Exception) -> str:
    """An error's message in one short line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _named(tree) -> dict[str, jax.Array]:
    """The leaves by name, without empty ones (codes of a network without codes), which Orbax refuses."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree) if _size(leaf)}


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _size(leaf) -> int:
    return int(np.prod(leaf.shape))


def _checksums(tree) -> list[int]:
    """The CRC-32 of every leaf's bytes."""
    leaves = (np.ascontiguousarray(leaf) for leaf in jax.tree.leaves(parallel.host(tree)))
    return [zlib.crc32(leaf.view(np.uint8).data) for leaf in leaves]
