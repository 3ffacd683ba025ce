"""The families by name, and their shapes by seed and index."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
from manifold3d import Manifold

from jonet.data.families import aeroplane, car, chair, guitar, lamp, mug, table
from jonet.errors import ConfigError
from jonet.geometry.mesh import Mesh


@dataclass(frozen=True)
class Family:
    """A family of shapes.  draw: generator -> parameters by name.  build: parameters as attributes -> solid."""

    name: str
    draw: Callable[[np.random.Generator], dict]
    build: Callable[[SimpleNamespace], Manifold]

    def __call__(self, rng: np.random.Generator) -> Mesh:
        return self.shape(self.draw(rng))

    def shape(self, parameters: dict) -> Mesh:
        """The closed mesh with these parameters: meters, +y up, +z front, faces outwards."""
        solid = max(self.build(SimpleNamespace(**parameters)).decompose(), key=Manifold.volume)
        mesh = solid.to_mesh64()  # the largest part: crossing members may enclose a pocket or cut off a splinter
        return Mesh(np.array(mesh.vert_properties[:, :3]), np.array(mesh.tri_verts), name=self.name)  # writable copies


MODULES = dict(chair=chair, table=table, lamp=lamp, mug=mug, aeroplane=aeroplane, car=car, guitar=guitar)
FAMILIES: dict[str, Family] = {name: Family(name, module.draw, module.build) for name, module in MODULES.items()}


def make(family: str, seed: int, index: int) -> Mesh:
    """Member `index` of a family under a seed, a pure function of these three; ConfigError for an unknown family."""
    shape = _family(family)(_generator(family, seed, index))
    return replace(shape, name=f"{family}_{seed}_{index:04d}")


def parameters(family: str, seed: int, index: int) -> dict[str, float | int | str]:
    """The parameters that `make` draws for that member; ConfigError for an unknown family."""
    return _family(family).draw(_generator(family, seed, index))


def _family(name: str) -> Family:
    if name not in FAMILIES:
        raise ConfigError(f"there is no family {name!r}; choose one of {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name]


def _generator(family: str, seed: int, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(family.encode()), index])
