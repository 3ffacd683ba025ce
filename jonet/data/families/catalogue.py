"""The families by name, and shapes made from a seed."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
from manifold3d import Manifold

from jonet.data.families import aeroplane, car, chair, guitar, lamp, mug, table
from jonet.data.meshes import Mesh
from jonet.errors import ConfigError


@dataclass(frozen=True)
class Family:
    """A kind of thing.  draw: a generator -> its parameters by name.  build: parameters as attributes -> the solid."""

    name: str
    draw: Callable[[np.random.Generator], dict]
    build: Callable[[SimpleNamespace], Manifold]

    def __call__(self, rng: np.random.Generator) -> Mesh:
        return self.shape(self.draw(rng))

    def shape(self, parameters: dict) -> Mesh:
        """The closed mesh with these parameters: metres, +y up, +z front, faces outwards."""
        solid = max(self.build(SimpleNamespace(**parameters)).decompose(), key=Manifold.volume)
        mesh = solid.to_mesh64()  # the largest part: crossing members may enclose a pocket or cut off a splinter
        return Mesh(np.array(mesh.vert_properties[:, :3]), np.array(mesh.tri_verts), name=self.name)  # writable copies


MODULES = dict(chair=chair, table=table, lamp=lamp, mug=mug, aeroplane=aeroplane, car=car, guitar=guitar)
FAMILIES: dict[str, Family] = {name: Family(name, module.draw, module.build) for name, module in MODULES.items()}


def make(family: str, seed: int, index: int) -> Mesh:
    """Member `index` of a family under a seed, a function of these three alone; ConfigError for an unknown family."""
    shape = _family(family)(_generator(family, seed, index))
    return replace(shape, name=f"{family}_{seed}_{index:04d}")


def parameters(family: str, seed: int, index: int) -> dict[str, float | int | str]:
    """What `make` draws for that member; ConfigError for an unknown family."""
    return _family(family).draw(_generator(family, seed, index))


def _family(name: str) -> Family:
    if name not in FAMILIES:
        raise ConfigError(f"there is no family {name!r}; choose one of {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name]


def _generator(family: str, seed: int, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(family.encode()), index])
