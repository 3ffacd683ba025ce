"""Which shapes of a store a network was trained on, identified by their content, not by name or path."""

from __future__ import annotations

import dataclasses
import warnings
from collections import defaultdict

import numpy as np

from jonet.codes import Codes
from jonet.data import sources
from jonet.data.store import Store
from jonet.errors import ConfigError
from jonet.model import Model
from jonet.wording import counted

_NOTHING = sources.content({})  # the content digest of sources without a description


def learned(trained: Model) -> frozenset[str] | None:
    """Content digests of a network's training shapes (`sources.content`); None if the model does not record them."""
    if trained.codes is None or trained.codes.sources is None:
        return None
    return frozenset(trained.codes.sources) - {_NOTHING}


def unseen(store: Store, trained: Model) -> np.ndarray:
    """Indices [K] of the store's test shapes that the network was not trained on.

    Warns with the number and names of those left out, and if the model does not record its training shapes.  Raises
    ConfigError if there are test shapes and none is left.
    """
    test, seen = store.select("test"), learned(trained)
    if not len(test):
        return test
    if seen is None:
        warnings.warn(
            "the network does not say which shapes it learned from, so it is not checked whether the test shapes are "
            "among them",
            stacklevel=1,
        )
        return test
    left = np.array([i for i in test if store.contents[i] not in seen], test.dtype)
    if not len(left):
        raise ConfigError(
            f"{'the only test shape is' if len(test) == 1 else f'all {len(test):,} test shapes are'} among those "
            "that the network learned from, so nothing would be tested; take others: another "
            "--seed, of a folder other files"
        )
    if len(left) < len(test):
        names = [store.names[i] for i in test if i not in set(left)]
        warnings.warn(
            f"{len(names)} of {counted(len(test), 'test shape')} left out, which the network learned from: "
            f"{', '.join(names[:5])}{', …' if len(names) > 5 else ''}",
            stacklevel=1,
        )
    return left


def matched_training(store: Store, trained: Model) -> list[tuple[int, int]]:
    """The network's training shapes that are in the store, as pairs (row of `trained.codes`, index in the store).

    Of several shapes in the store with the same content, the one with the same name is taken if there is one, else the
    first.
    """
    codes = trained.codes
    if codes is None or codes.sources is None:
        return []
    indices = defaultdict(list)
    for index, content in enumerate(store.contents):
        if content != _NOTHING:
            indices[content].append(index)
    found = []
    for row, (content, name) in enumerate(zip(codes.sources, codes.names, strict=True)):
        if alike := indices.get(content):
            found.append((row, next((i for i in alike if store.names[i] == name), alike[0])))
    return found


def rebuilt_codes(store: Store, trained: Model) -> Codes | None:
    """The network's codes of `matched_training`, with the store's names and similarities; None if there are none."""
    found = matched_training(store, trained)
    if trained.codes is None or not found:
        return None
    codes = trained.codes[[row for row, _ in found]]
    names = tuple(store.names[index] for _, index in found)
    return dataclasses.replace(codes, names=names).placed([store.similarities[index] for _, index in found])


def training(store: Store, trained: Model) -> np.ndarray:
    """Indices [K], ascending, of all training shapes of the network; empty if one of them is not in the store."""
    found = matched_training(store, trained)
    complete = trained.codes is not None and len(found) == len(trained.codes)
    return np.array(sorted({index for _, index in found}) if complete else [], np.int64)


def count(trained: Model) -> int | None:
    """The number of a network's training shapes; None if the model does not record it."""
    return trained.history.get("shapes", None if trained.codes is None else len(trained.codes))
