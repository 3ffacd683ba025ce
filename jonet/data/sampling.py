"""Sampling of solids: signed distances, occupancies and surface points, with the published recipes by name.

Distances are exact (to the nearest triangle, by libigl's AABB tree) and negative inside; inside is where the
generalized winding number exceeds 1/2 (`geometry/inside.py`).  For simple meshes (closed surfaces that do not
intersect), the angle-weighted pseudonormal of the nearest triangle, edge or vertex gives the same sign in a quarter of
the time (Bærentzen and Aanæs 2005).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import igl
import numpy as np
from numpy.typing import DTypeLike
from scipy.spatial import KDTree

from jonet.checks import check_array
from jonet.errors import ConfigError, InputError, MeshError
from jonet.geometry.boundary import boundary_surface
from jonet.geometry.inside import Inside, open_edges
from jonet.geometry.mesh import Mesh
from jonet.geometry.shell import shell
from jonet.geometry.voxels import METHODS as VOXELS

METHODS = ("exact", "winding", "views")
FRAMES = {"sphere": 1.0, "cube": 0.55}  # half the side of the sampling box in each normalized frame
VOTERS = 11  # nearest shell points that vote on a sign (DeepSDF, PreprocessMesh)
AGREED = 0.25  # minimum fraction of majority-inside points with unanimous votes; below, votes are noise


@dataclass(frozen=True)
class Recipe:
    """What is sampled from each shape."""

    near: int = 16_000  # signed distances near the surface, an even number: two per surface point, see variances
    uniform: int = 4_000  # signed distances at points uniform in `region`, 0 or more
    # variances per axis of the Gaussian offsets of the two samples at a surface point, in the sphere frame; above 0
    variances: tuple[float, float] = (0.0025, 0.00025)
    region: str = "cube"  # where `uniform` samples: "cube" is [-1, 1]³, "ball" the unit ball, in the sphere frame
    unanimous: bool = True  # with the sign method `views`, keep a sample only if all votes for its sign agree
    surface: int = 4_096  # points on the surface with normals, 0 or more
    occupancies: int = 0  # points with occupancies, uniform in a cube around the shape; 0 or more
    padding: float = 0.1  # by which fraction that cube's side exceeds the longest side of the bounding box; above -1
    near_occupancies: int = 0  # points with occupancies near the surface, 0 or more
    sigma: float = 0.01  # standard deviation of near_occupancies from the surface, in longest sides; above 0
    # method of the 32³ voxel grid (see `geometry.voxels`); ray: as published, random: as in the text; none: no grid
    voxels: Literal["none", "ray", "fill", "interior", "surface", "random"] = "none"
    images: int = 0  # rendered views per shape, 0 or more (published: 24)
    image_size: int = 224  # pixels per side of a view, 8 to 1024
    image_channels: Literal[1, 3] = 1  # channels of a view: 1 is gray, 3 is color (for views that are image files)
    # sample the distances of test shapes as DeepSDF's program does: half as many, with ten times the first variance
    published_test: bool = False

    def __post_init__(self):
        object.__setattr__(self, "variances", tuple(float(v) for v in self.variances))  # JSON has lists
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
            raise ConfigError(f"recipe: padding is {self.padding}, but must be a fraction of the longest side above -1")
        if not self.sigma > 0:
            raise ConfigError(f"recipe: sigma is {self.sigma}, but must be a fraction of the longest side above 0")
        if self.voxels not in ("none", *VOXELS):
            raise ConfigError(f"recipe: voxels are {self.voxels!r}; they must be 'none' or one of {', '.join(VOXELS)}")
        if not 8 <= self.image_size <= 1024 or self.image_channels not in (1, 3):
            raise ConfigError(
                f"recipe: image_size is {self.image_size} and image_channels {self.image_channels}; they must be from "
                "8 to 1024, and 1 or 3"
            )

    def of(self, split: str) -> Recipe:
        """What is sampled from a shape of a split."""
        if split != "test" or not self.published_test:
            return self
        first, second = self.variances
        near = self.near // 4 * 2  # even
        return dataclasses.replace(self, near=near, uniform=self.uniform // 2, variances=(10 * first, second))


RECIPES: dict[str, Recipe] = {
    "default": Recipe(),
    # DeepSDF's program (PreprocessMesh.cpp): 500,000 samples, 47/50 of them near the surface; 250,000 with -t (test)
    "deepsdf": Recipe(470_000, 30_000, (0.005, 0.0005), surface=30_000),
    "deepsdf_test": Recipe(235_000, 15_000, (0.05, 0.0005), surface=30_000),
    # DeepSDF's paper (section 5 and supplement), which differs from the program
    "paper": Recipe(500_000, 25_000, (0.0025, 0.00025), "ball", surface=30_000),
    # Occupancy Networks (sample_mesh.py)
    "onet": Recipe(0, 0, surface=100_000, occupancies=100_000),
}


class Solid:
    """A mesh prepared for many inside tests and signed distances.

    mesh: oriented (`diagnosis.orient`).  method:
        `exact`: closed meshes only;
        `winding`: also open meshes, where inside is an estimate by generalized winding numbers;
        `views`: DeepSDF's program: the visible shell is the surface, and a point is inside if it is behind the tangent
            planes of all its `VOTERS` nearest shell points; the mesh must be in a normalized frame.
    boundary_surface: it (`geometry/boundary.py`), to which distances and surface points refer.
    Raises MeshError if an open mesh is used with `exact`, if nothing is enclosed, or if `views` see nothing.
    """

    def __init__(self, mesh: Mesh, method: str = "exact"):
        if method not in METHODS:
            raise InputError(f"sign method is {method!r}; it must be one of {', '.join(METHODS)}")
        self.mesh, self.method = mesh, method
        if method == "views":
            self.boundary_surface = mesh
            self._shell = shell(mesh)
            if (seen := len(self._shell.points)) < VOTERS:
                raise MeshError(
                    f"{mesh.name or 'mesh'}: views from all sides see {seen} points of it, since it is thinner or "
                    "smaller than their pixels, so there is no inside; thicken it, or remove what is far from it"
                )
            self._tree = KDTree(self._shell.points, balanced_tree=False, compact_nodes=False)  # faster to build
            self._check_votes()
            return
        if method == "exact" and (count := open_edges(mesh)):
            raise MeshError(
                f"{mesh.name or 'mesh'}: {count} open edges, so inside is undefined; "
                "close the mesh, or choose the sign method 'winding' or 'views'"
            )
        self._inside = Inside(mesh)
        self.boundary_surface = mesh if self._inside.simple else boundary_surface(mesh, self._inside.tree)
        self._surface = self.boundary_surface.vertices, self.boundary_surface.faces.astype(np.int64)

    def inside(self, points) -> np.ndarray:
        """points [N, 3] -> bool [N]."""
        points = check_array(points, "points", (None, 3), np.float64)
        if self.method == "views":
            return self._votes(points)[1] == VOTERS
        return self._inside(points)

    def distances(self, points) -> np.ndarray:
        """points [N, 3] -> signed distances [N] float32, negative inside, in the mesh's units."""
        return self._distances(check_array(points, "points", (None, 3), np.float64))[0]

    def _distances(self, points, tangent: float = 0.005**0.5):
        """Signed distances, and whether the sign is certain: with `views` only if all votes agree, else always.

        tangent: with `views`, distances below this are to the tangent plane of the nearest shell point (DeepSDF's
        program): the shell is a point cloud, so the distance to a point would overestimate.
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
        """Signed distances to a simple mesh, signs by pseudonormals."""
        kind = igl.SIGNED_DISTANCE_TYPE_PSEUDONORMAL
        return np.asarray(igl.signed_distance(points, *self._surface, sign_type=kind)[0])

    def _check_votes(self):
        """MeshError if the surface is visible from both sides (an open sheet), so that its votes are noise.

        Near a solid, many of the points voted inside are unanimously so; near a sheet, normals of both sides disagree.
        """
        rng = np.random.default_rng(0)
        points = np.repeat(surface(self.mesh, 1000, rng)[0], 2, axis=0).astype(np.float64)
        side = np.ptp(self.mesh.bounds, axis=0).max()
        behind = self._votes(points + rng.normal(0, 0.02 * side, points.shape))[1]
        # Of the points that most votes call inside, those that all votes do.
        agreed = np.count_nonzero(behind == VOTERS) / max(np.count_nonzero(behind * 2 > VOTERS), 1)
        if agreed < AGREED:
            raise MeshError(
                f"{self.mesh.name or 'mesh'}: its surface is seen from both sides (of the votes for inside only "
                f"{agreed:.0%} agree), so it encloses nothing; close it, and remove sheets such as a ground plane"
            )

    def _votes(self, points):
        """For points [N, 3]: distances to the nearest shell point, how many of the `VOTERS` nearest ones have the point
        behind their tangent plane, and distances to the nearest one's tangent plane: [N] each."""
        distances, voters = self._tree.query(points, VOTERS)  # heights: signed distances to the tangent planes
        heights = np.einsum("nkc,nkc->nk", self._shell.normals[voters], points[:, None] - self._shell.points[voters])
        return distances[:, 0], (heights <= 0).sum(1), np.abs(heights[:, 0])


def signed_distances(mesh: Mesh | Solid, points, method: str = "exact") -> np.ndarray:
    """Signed distances from points to a mesh, negative inside (DeepSDF, section 3).

    points [N, 3], in the mesh's units -> [N] float32, in the mesh's units.  method and errors: see `Solid`.
    """
    return _solid(mesh, method).distances(points)


def inside(mesh: Mesh | Solid, points, method: str = "exact") -> np.ndarray:
    """Whether points [N, 3] are inside a mesh -> bool [N].  method and errors: see `Solid`."""
    return _solid(mesh, method).inside(points)


def surface(
    mesh: Mesh, count: int, rng: np.random.Generator, dtype: DTypeLike = np.float32
) -> tuple[np.ndarray, np.ndarray]:
    """Points uniform by area on the faces, and their face normals: [count, 3] of `dtype`, [count, 3] float32.

    All faces are sampled; for the boundary of the solid only, pass `Solid(mesh).boundary_surface`.  dtype: float64 for
    meshes in input units, which may be so far from the origin that float32 is too coarse.
    """
    corners = mesh.corners
    a, b, c = np.moveaxis(corners, 1, 0)
    normals = np.cross(b - a, c - a)
    areas = np.linalg.norm(normals, axis=1)
    total = np.cumsum(areas)
    if not len(total) or not total[-1] > 0:
        raise MeshError(f"{mesh.name or 'mesh'}: the faces have no area, so there is no surface to sample")
    draws = rng.random(count) * total[-1]
    order, face = np.argsort(draws), np.empty(count, np.int64)
    face[order] = np.searchsorted(total, draws[order], side="right")  # in a third of the time, sorting included
    face = np.minimum(face, np.flatnonzero(areas)[-1])  # the product above may round up to the total
    u, v = rng.random((2, count, 1))
    u = np.sqrt(u)  # makes the barycentric coordinates uniform by area
    a, b, c = np.moveaxis(corners.take(face, 0), 1, 0)
    points = (1 - u) * a
    points += u * (1 - v) * b
    points += u * v * c
    return points.astype(dtype), (normals.take(face, 0) / areas.take(face)[:, None]).astype(np.float32)


def sdf_samples(
    mesh: Mesh | Solid, recipe: Recipe, rng: np.random.Generator, method: str = "exact", frame: str = "sphere"
) -> tuple[np.ndarray, np.ndarray]:
    """Points with signed distances: outside [P, 4] and inside [M, 4] float32 (x, y, z, distance), in random order.

    P + M is near + uniform of the recipe, minus what `unanimous` drops.  In the frame `cube` the recipe's lengths are
    scaled by `FRAMES`.  Distances are those of the points after rounding to float32.
    Raises MeshError if a side has no samples.
    """
    solid, unit = _solid(mesh, method), FRAMES[frame]
    seeds = surface(solid.boundary_surface, recipe.near // 2, rng)[0][:, None]
    spread = unit * np.sqrt(recipe.variances)[:, None]
    near = seeds + spread * rng.standard_normal((recipe.near // 2, 2, 3))  # [near / 2, one per variance, 3]
    points = np.concatenate([near.reshape(-1, 3), unit * _spread(recipe.region, recipe.uniform, rng)])
    points = rng.permutation(points.astype(np.float32))  # stores rely on random order within a side
    distances, sure = solid._distances(points.astype(np.float64), tangent=spread[0, 0])
    samples = np.column_stack([points, distances])
    if recipe.unanimous:
        samples = samples[sure]
    outside = samples[:, 3] > 0  # a distance of exactly 0 counts as inside
    _both_sides(solid, outside, "distances")
    return samples[outside], samples[~outside]


def occupancies(
    mesh: Mesh | Solid,
    count: int,
    rng: np.random.Generator,
    padding: float = 0.1,
    method: str = "exact",
    dtype: DTypeLike = np.float32,
) -> tuple[np.ndarray, np.ndarray]:
    """Points uniform in a cube, and whether they are inside: [count, 3] of `dtype`, bool [count].

    The cube has the center of the bounding box and its longest side times (1 + `padding`): in the cube frame ±0.55, as
    published (Occupancy Networks, sample_mesh.py).  Points are rounded to `dtype` before the inside test, so labels are
    right for the float16 points that are stored (the published program rounds afterwards).
    Raises MeshError if no point, or every point, is inside.
    """
    solid = _solid(mesh, method)
    low, high = solid.mesh.bounds
    side = (high - low).max() * (1 + padding)
    return _labeled(solid, (low + high) / 2 + side * (rng.random((count, 3)) - 0.5), dtype)


def near_occupancies(
    mesh: Mesh | Solid,
    count: int,
    rng: np.random.Generator,
    sigma: float = 0.01,
    method: str = "exact",
    dtype: DTypeLike = np.float32,
) -> tuple[np.ndarray, np.ndarray]:
    """Surface points with Gaussian noise, and whether they are inside: [count, 3] of `dtype`, bool [count].

    Rounding and errors as of `occupancies`.
    sigma: standard deviation per axis, as a fraction of the longest side (Occupancy Networks, sample_mesh.py: 0.01).
    """
    solid = _solid(mesh, method)
    spread = sigma * np.ptp(solid.mesh.bounds, axis=0).max()
    seeds = surface(solid.boundary_surface, count, rng)[0]
    return _labeled(solid, seeds + spread * rng.standard_normal((count, 3)), dtype)


def _labeled(solid: Solid, points: np.ndarray, dtype) -> tuple[np.ndarray, np.ndarray]:
    points = points.astype(dtype)
    within = solid.inside(points.astype(np.float64))
    _both_sides(solid, ~within, "occupancies")
    return points, within


def _solid(mesh: Mesh | Solid, method: str) -> Solid:
    return mesh if isinstance(mesh, Solid) else Solid(mesh, method)


def _spread(region: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """Points [count, 3] uniform in the cube [-1, 1]³, or in the unit ball."""
    if region == "cube":
        return rng.uniform(-1, 1, (count, 3))
    directions = rng.standard_normal((count, 3))  # scaled to radii whose cube is uniform
    return directions * (rng.random((count, 1)) ** (1 / 3) / np.linalg.norm(directions, axis=1, keepdims=True))


def _both_sides(solid: Solid, outside: np.ndarray, what: str):
    """MeshError if all samples are on one side."""
    if len(outside) and (outside.all() or not outside.any()):
        side = "inside" if outside.all() else "outside"
        raise MeshError(
            f"{solid.mesh.name or 'mesh'}: none of {len(outside)} sampled {what} is {side} by the sign method "
            f"'{solid.method}', so there is no solid to learn; close or thicken the mesh, or choose another sign method"
        )
