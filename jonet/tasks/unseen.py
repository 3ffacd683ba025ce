"""Which shapes of a store a network has seen: told by their content, whatever they are called and wherever they lie."""

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

_NOTHING = sources.content({})  # of sources that say nothing of themselves


def learned(trained: Model) -> frozenset[str] | None:
    """The contents of the shapes that a network learned from (`sources.content`); None where it does not say."""
    if trained.codes is None or trained.codes.sources is None:
        return None
    return frozenset(trained.codes.sources) - {_NOTHING}


def unseen(store: Store, trained: Model) -> np.ndarray:
    """Indices of the store's test shapes that the network did not learn from.

    A warning counts and names those that are left out, and says where a network cannot tell.  Raises ConfigError where
    there are test shapes and none is left.
    """
    test, seen = store.select("test"), learned(trained)
    if not len(test):
        return test
    if seen is None:
        warnings.warn(
            "the network does not say which shapes it learned from, so whether it never saw the test shapes is not "
            "checked",
            stacklevel=1,
        )
        return test
    left = np.array([i for i in test if store.contents[i] not in seen], test.dtype)
    if not len(left):
        raise ConfigError(
            f"all {len(test)} test shapes are among those that the network learned from, so nothing would be tested; "
            "take others: another --seed, of a folder other files"
        )
    if len(left) < len(test):
        names = [store.names[i] for i in test if i not in set(left)]
        warnings.warn(
            f"{len(names)} of {len(test)} test shapes are left out, since the network learned from them: "
            f"{', '.join(names[:5])}{', …' if len(names) > 5 else ''}",
            stacklevel=1,
        )
    return left


def known(store: Store, trained: Model) -> list[tuple[int, int]]:
    """The shapes that the network learned from and that the store holds: (row of `trained.codes`, index) of each.

    Of several shapes of the store with the same content one is taken, that of the same name if there is one.
    """
    if learned(trained) is None:
        return []
    indices = defaultdict(list)
    for index, content in enumerate(store.contents):
        if content != _NOTHING:
            indices[content].append(index)
    found = []
    for row, (content, name) in enumerate(zip(trained.codes.sources, trained.codes.names, strict=True)):
        if alike := indices.get(content):
            found.append((row, next((i for i in alike if store.names[i] == name), alike[0])))
    return found


def known_codes(store: Store, trained: Model) -> Codes | None:
    """The network's codes of the shapes of `known`, called and placed as the store has them; None where there are
    none."""
    found = known(store, trained)
    if not found:
        return None
    codes = trained.codes[[row for row, _ in found]]
    names = tuple(store.names[index] for _, index in found)
    return dataclasses.replace(codes, names=names).placed([store.similarities[index] for _, index in found])


def training(store: Store, trained: Model) -> np.ndarray:
    """Indices of all shapes that the network learned from; none where the store lacks one of them."""
    found = known(store, trained)
    whole = trained.codes is not None and len(found) == len(trained.codes)
    return np.array(sorted({index for _, index in found}) if whole else [], np.int64)


def count(trained: Model) -> int | None:
    """How many shapes a network learned from; None where it does not say."""
    return trained.history.get("shapes", None if trained.codes is None else len(trained.codes))
