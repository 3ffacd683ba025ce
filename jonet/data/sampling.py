"""Samples of a solid: signed distances, occupancies, points on its surface, each published recipe under its name.

Distances are exact (to the nearest triangle, by a tree of boxes) and negative inside; inside is where the generalised
winding number exceeds 1/2 (`inside.py`). On closed surfaces that meet nowhere, the side of the nearest triangle, edge
or vertex gives distances the same sign in a quarter of the time (Baerentzen and Aanaes 2005: angle-weighted normals).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import igl
import numpy as np
from scipy.spatial import cKDTree

from jonet.data.inside import Inside, open_edges
from jonet.data.meshes import Mesh
from jonet.data.views import shell
from jonet.data.voxels import METHODS as VOXELS
from jonet.data.walls import walls
from jonet.errors import ConfigError, InputError, MeshError, require

METHODS = ("exact", "winding", "views")
FRAMES = {"sphere": 1.0, "cube": 0.55}  # half the side of the box in which a normalised mesh is sampled
VOTERS = 11  # points of the shell that vote on a sign (DeepSDF, PreprocessMesh)
AGREED = 0.25  # share of the places voted inside whose voters must agree, lest the votes are noise


@dataclass(frozen=True)
class Recipe:
    """What is sampled of each shape.

    near: distances near the surface, two at each of near/2 surface points: one at each of `variances` (per axis, of the
    sphere frame). uniform: distances spread evenly over `region` ("cube" [-1, 1]³ or the unit "ball", of the sphere
    frame). unanimous: where signs come from votes (`views`), keep a sample only if all agree. surface: points of the
    surface with normals. occupancies: points spread evenly over a cube around the shape, its side the longest of the
    bounding box and the share `padding` more. near_occupancies: points of the surface moved by Gaussian noise, `sigma`
    of the longest side.

    voxels: a grid of 32³ by a method of `voxels.METHODS` ("ray" is the published one), or "none". images: views of each
    shape (published: 24), of `image_size` pixels a side and 1 channel (grey) or 3 (for views that are files in colour).
    """

    near: int = 16_000
    uniform: int = 4_000
    variances: tuple[float, float] = (0.0025, 0.00025)
    region: str = "cube"
    unanimous: bool = True
    surface: int = 4_096
    occupancies: int = 0
    padding: float = 0.1
    near_occupancies: int = 0
    sigma: float = 0.01
    voxels: Literal["none", "ray", "fill", "interior", "surface"] = "none"
    images: int = 0
    image_size: int = 224
    image_channels: Literal[1, 3] = 1

    def __post_init__(self):
        object.__setattr__(self, "variances", tuple(float(v) for v in self.variances))
        for name in ("near", "uniform", "surface", "occupancies", "near_occupancies", "images"):
            if not isinstance(count := getattr(self, name), int) or count < 0:
                raise ConfigError(f"recipe: {name} is {count!r}, but it counts samples and must be 0 or more")
        if self.near % 2:
            raise ConfigError(f"recipe: near is {self.near}, but must be even: each surface point gives two samples")
        if len(self.variances) != 2 or not min(self.variances) > 0:
            raise ConfigError(f"recipe: variances are {self.variances}, but there must be two, above 0")
        if self.region not in ("cube", "ball"):
            raise ConfigError(f"recipe: region is {self.region!r}; it must be 'cube' or 'ball'")
        if not self.padding > -1:
            raise ConfigError(f"recipe: padding is {self.padding}, but a share of the longest side above -1 is needed")
        if not self.sigma > 0:
            raise ConfigError(f"recipe: sigma is {self.sigma}, but a share of the longest side above 0 is needed")
        if self.voxels not in ("none", *VOXELS):
            raise ConfigError(f"recipe: voxels are {self.voxels!r}; they must be 'none' or one of {', '.join(VOXELS)}")
        if not 8 <= self.image_size <= 1024 or self.image_channels not in (1, 3):
            raise ConfigError(
                f"recipe: images of {self.image_size} pixels a side and {self.image_channels} channels; they must have "
                "8 to 1024 and 1 or 3"
            )


RECIPES: dict[str, Recipe] = {
    "default": Recipe(),
    # DeepSDF's program (PreprocessMesh.cpp): 500,000 samples, 47/50 of them near; with -t 250,000 for test shapes
    "deepsdf": Recipe(470_000, 30_000, (0.005, 0.0005), surface=30_000),
    "deepsdf_test": Recipe(235_000, 15_000, (0.05, 0.0005), surface=30_000),
    # DeepSDF's paper (section 5 and supplement)
    "paper": Recipe(500_000, 25_000, (0.0025, 0.00025), "ball", surface=30_000),
    # Occupancy Networks (sample_mesh.py)
    "onet": Recipe(0, 0, surface=100_000, occupancies=100_000),
}


class Solid:
    """A mesh that is asked, many times, what is inside and how far its walls are.

    mesh: oriented (`meshes.orient`). method: `exact` (closed meshes only), `winding` (open ones too, where inside is an
    estimate), `views` (the shell seen from outside is the surface, and inside is what lies behind all of its
    nearest points: DeepSDF's program; the mesh must be in a normalised frame).
    walls: the mesh without what lies within the solid; distances and surface points belong to it.
    Raises MeshError where `exact` is asked of an open mesh, or where nothing is enclosed.
    """

    def __init__(self, mesh: Mesh, method: str = "exact"):
        if method not in METHODS:
            raise InputError(f"sign method is {method!r}; it must be one of {', '.join(METHODS)}")
        self.mesh, self.method = mesh, method
        if method == "views":
            self.walls = mesh
            self._shell = shell(mesh)
            self._tree = cKDTree(self._shell.points, balanced_tree=False, compact_nodes=False)
            self._check_votes()
            return
        if method == "exact" and (count := open_edges(mesh)):
            raise MeshError(
                f"{mesh.name or 'mesh'}: {count} open edges, so inside is undefined; "
                "close the mesh, or choose the sign method 'winding' or 'views'"
            )
        self._inside = Inside(mesh)
        self.walls = mesh if self._inside.simple else walls(mesh, self._inside.tree)
        self._surface = self.walls.vertices, self.walls.faces.astype(np.int64)

    def inside(self, points) -> np.ndarray:
        """points [N, 3] -> bool [N]."""
        points = require(points, "points", (None, 3), np.float64)
        if self.method == "views":
            return self._votes(points)[1] == VOTERS
        return self._inside(points)

    def distances(self, points) -> np.ndarray:
        """points [N, 3] -> signed distances [N] float32, negative inside, in the mesh's units."""
        return self._distances(require(points, "points", (None, 3), np.float64))[0]

    def _distances(self, points, tangent: float = 0.005**0.5):
        """Signed distances, and whether the sign is sure: always, or with `views` where all voters agree.

        tangent: nearer than this, the distance by `views` is that to the tangent plane (DeepSDF's program).
        """
        if self.method == "views":
            nearest, behind, plane = self._votes(points)
            distance = np.where(nearest < tangent, plane, nearest)
            signed, sure = np.where(behind == VOTERS, -distance, distance), (behind == 0) | (behind == VOTERS)
        elif self._inside.simple:
            signed, sure = self._signed(points), np.ones(len(points), bool)
        else:
            distance = np.sqrt(igl.point_mesh_squared_distance(points, *self._surface)[0])
            signed, sure = np.where(self.inside(points), -distance, distance), np.ones(len(points), bool)
        return signed.astype(np.float32), sure

    def _signed(self, points):
        return igl.signed_distance(points, *self._surface, sign_type=igl.SIGNED_DISTANCE_TYPE_PSEUDONORMAL)[0]

    def _check_votes(self):
        """MeshError where a surface is seen from both sides, so that its votes are noise."""
        rng = np.random.default_rng(0)
        points = np.repeat(surface(self.mesh, 1000, rng)[0], 2, axis=0).astype(np.float64)
        side = np.ptp(self.mesh.bounds, axis=0).max()
        behind = self._votes(points + rng.normal(0, 0.02 * side, points.shape))[1]
        agreed = np.count_nonzero(behind == VOTERS) / max(np.count_nonzero(behind * 2 > VOTERS), 1)
        if agreed < AGREED:
            raise MeshError(
                f"{self.mesh.name or 'mesh'}: its surface is seen from both sides (of the votes for inside only "
                f"{agreed:.0%} agree), so it encloses nothing; close it"
            )

    def _votes(self, points):
        """Distances to the nearest point of the shell, how many voters see them from behind, distances to its plane."""
        distances, voters = self._tree.query(points, VOTERS)
        heights = np.einsum("nkc,nkc->nk", self._shell.normals[voters], points[:, None] - self._shell.points[voters])
        return distances[:, 0], (heights <= 0).sum(1), np.abs(heights[:, 0])


def signed_distances(mesh: Mesh | Solid, points, method: str = "exact") -> np.ndarray:
    """Signed distances from points to a surface, negative inside (DeepSDF, section 3).

    points [N, 3], in the mesh's units -> [N] float32, in the mesh's units.  method and errors: see `Solid`.
    """
    return _solid(mesh, method).distances(points)


def inside(mesh: Mesh | Solid, points, method: str = "exact") -> np.ndarray:
    """Whether points [N, 3] lie inside a surface -> bool [N].  method and errors: see `Solid`."""
    return _solid(mesh, method).inside(points)


def surface(mesh: Mesh, count: int, rng: np.random.Generator, dtype=np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Points spread evenly by area over the faces, with the faces' normals: [count, 3] of `dtype`, [count, 3] float32.

    All faces count; those of the solid's boundary alone are `Solid(mesh).walls`.  dtype: float64 for meshes in own
    units, which may lie so far from the origin that float32 has steps.
    """
    a, b, c = np.moveaxis(mesh.corners, 1, 0)
    normals = np.cross(b - a, c - a)
    areas = np.linalg.norm(normals, axis=1)
    reach = np.cumsum(areas)
    if not len(reach) or not reach[-1] > 0:
        raise MeshError(f"{mesh.name or 'mesh'}: the faces have no area, so there is no surface to take points of")
    face = np.searchsorted(reach, rng.random(count) * reach[-1], side="right")
    face = np.minimum(face, np.flatnonzero(areas)[-1])  # where rounding reaches the very end
    u, v = rng.random((2, count, 1))
    u = np.sqrt(u)
    points = (1 - u) * a[face] + u * (1 - v) * b[face] + u * v * c[face]
    return points.astype(dtype), (normals[face] / areas[face, None]).astype(np.float32)


def sdf_samples(
    mesh: Mesh | Solid, recipe: Recipe, rng: np.random.Generator, method: str = "exact", frame: str = "sphere"
) -> tuple[np.ndarray, np.ndarray]:
    """Points with signed distances: outside [P, 4] and inside [M, 4] float32 (x, y, z, distance), in random order.

    P + M is near + uniform of the recipe, less what `unanimous` drops. In the frame `cube` the recipe's lengths shrink
    with the box. Distances belong to the points as they are stored.  Raises MeshError if a side has no samples.
    """
    solid, unit = _solid(mesh, method), FRAMES[frame]
    seeds = surface(solid.walls, recipe.near // 2, rng)[0][:, None]
    spread = unit * np.sqrt(recipe.variances)[:, None]
    near = seeds + spread * rng.standard_normal((recipe.near // 2, 2, 3))
    points = np.concatenate([near.reshape(-1, 3), unit * _spread(recipe.region, recipe.uniform, rng)])
    points = rng.permutation(points.astype(np.float32))
    distances, sure = solid._distances(points.astype(np.float64), tangent=spread[0, 0])
    samples = np.column_stack([points, distances])
    if recipe.unanimous:
        samples = samples[sure]
    outside = samples[:, 3] > 0
    _both_sides(solid, outside, "distances")
    return samples[outside], samples[~outside]


def occupancies(
    mesh: Mesh | Solid,
    count: int,
    rng: np.random.Generator,
    padding: float = 0.1,
    method: str = "exact",
    dtype=np.float32,
) -> tuple[np.ndarray, np.ndarray]:
    """Points spread evenly over a cube, and whether they are inside: [count, 3] of `dtype`, bool [count].

    The cube shares its centre with the bounding box; its side is the box's longest, enlarged by `padding`: in the cube
    frame ±0.55, as published (Occupancy Networks, sample_mesh.py), in others the same cube around the shape. Points
    are rounded to `dtype` first, so what is stored as float16 keeps its right side (the program rounds afterwards).
    Raises MeshError if no point, or every point, is inside.
    """
    solid = _solid(mesh, method)
    low, high = solid.mesh.bounds
    side = (high - low).max() * (1 + padding)
    return _labelled(solid, (low + high) / 2 + side * (rng.random((count, 3)) - 0.5), dtype)


def near_occupancies(
    mesh: Mesh | Solid,
    count: int,
    rng: np.random.Generator,
    sigma: float = 0.01,
    method: str = "exact",
    dtype=np.float32,
) -> tuple[np.ndarray, np.ndarray]:
    """Points of the surface with Gaussian noise, and whether they are inside, as `occupancies` gives them.

    sigma: standard deviation per axis, as a share of the longest side (Occupancy Networks, sample_mesh.py: 0.01).
    """
    solid = _solid(mesh, method)
    spread = sigma * np.ptp(solid.mesh.bounds, axis=0).max()
    seeds = surface(solid.walls, count, rng)[0]
    return _labelled(solid, seeds + spread * rng.standard_normal((count, 3)), dtype)


def _labelled(solid: Solid, points: np.ndarray, dtype) -> tuple[np.ndarray, np.ndarray]:
    points = points.astype(dtype)
    within = solid.inside(points.astype(np.float64))
    _both_sides(solid, ~within, "occupancies")
    return points, within


def _solid(mesh: Mesh | Solid, method: str) -> Solid:
    return mesh if isinstance(mesh, Solid) else Solid(mesh, method)


def _spread(region: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """Points [count, 3] spread evenly over the cube [-1, 1]³, or over the unit ball."""
    if region == "cube":
        return rng.uniform(-1, 1, (count, 3))
    directions = rng.standard_normal((count, 3))
    return directions * (rng.random((count, 1)) ** (1 / 3) / np.linalg.norm(directions, axis=1, keepdims=True))


def _both_sides(solid: Solid, outside: np.ndarray, what: str):
    if len(outside) and (outside.all() or not outside.any()):
        side = "inside" if outside.all() else "outside"
        raise MeshError(
            f"{solid.mesh.name or 'mesh'}: none of {len(outside)} sampled {what} lies {side} by the sign method "
            f"'{solid.method}', so there is no solid to learn; close or thicken the mesh, or choose another sign method"
        )
