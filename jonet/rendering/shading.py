"""Shaded images of meshes by ray tracing with embree: soft shadows, ambient occlusion, smooth and sharp edges."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from jonet.errors import InputError
from jonet.geometry.mesh import Mesh
from jonet.geometry.rays import Camera, Scene

BLUE = (0.16, 0.38, 0.72)  # linear RGB: the color of predicted shapes


def shade(
    mesh: Mesh,
    size: int = 256,
    view: str | tuple[float, float] = "three-quarter",
    supersample: int = 2,
    color=BLUE,
    *,
    background: str = "white",
    frame: np.ndarray | None = None,
    floor: float | None = None,
    ground: bool = True,
) -> np.ndarray:
    """Renders a mesh with one area light, a bright sky, and a soft shadow on the ground.

    view: a name in `rays.VIEWS`, or (azimuth, elevation) in degrees.  supersample: rays per pixel and direction.
    color: linear RGB in [0, 1], one [3] or per vertex [V, 3].  background: "white" or "transparent".  frame: points
    [N, 3] that the camera frames instead of the mesh, so that images of several meshes are comparable.  floor: height
    of the ground; by default the lowest of these points.  ground: whether to draw the shadow on it.
    -> [size, size, 3] uint8, or [size, size, 4] with straight alpha if the background is transparent.
    """
    if background not in ("white", "transparent"):
        raise InputError(f"background is {background!r}; it must be 'white' or 'transparent'")
    if np.shape(color) not in ((3,), mesh.vertices.shape):
        raise InputError(f"color must have shape [3] or {list(mesh.vertices.shape)}, but has {list(np.shape(color))}")
    scene = Scene(mesh)
    frame = mesh.corners.reshape(-1, 3) if frame is None else np.asarray(frame, float)
    reach = float(np.linalg.norm(np.ptp(frame, axis=0))) / 2
    camera = Camera.framing(frame, view, (size * supersample,) * 2)
    origins, directions = camera.rays()
    hits = scene.cast(origins, directions)
    solid = hits.face >= 0
    planes = np.zeros((*solid.shape, 5), np.float32)  # channels: linear RGB, shadow, coverage
    planes[solid, :3] = _surface(mesh, scene, camera, hits, solid, directions[solid], color, reach)
    planes[solid, 4] = 1
    if ground and camera.rotation[2, 1] < -0.1:  # only if the camera looks down
        floor = frame[:, 1].min() if floor is None else floor
        planes[~solid, 3] = _ground(scene, camera, floor, solid, origins, directions, reach)[~solid]
    planes = planes.reshape(size, supersample, size, supersample, 5).mean((1, 3))
    light, shadow, cover = planes[..., :3], planes[..., 3:4], planes[..., 4:]
    if background == "white":
        return _bytes(encode(light + 1 - cover - shadow))
    alpha = cover + (1 - cover) * (1 - encode(1 - shadow))  # viewers blend sRGB values, so shadows need less alpha
    colors = cover * encode(light / np.maximum(cover, 1e-6)) / np.maximum(alpha, 1e-6)
    return _bytes(np.concatenate([colors, alpha], -1))


def _surface(mesh, scene, camera, hits, solid, directions, color, reach):
    """Linear RGB [N, 3] of the N hits, as seen from the camera."""
    right, _, forward = camera.rotation
    lamp, face, barycentric = _lamp(camera), hits.face[solid], hits.barycentric[solid]
    viewer = -directions / np.linalg.norm(directions, axis=1, keepdims=True)
    flat = hits.normals[solid] * _side(hits.normals[solid], viewer)  # faces are two-sided
    normals = _round_normals(scene, mesh, face, barycentric)
    normals *= _side(normals, flat)
    lit, sky = _light(scene, hits.points[solid] + 3e-4 * reach * flat, flat, lamp, solid, 0.7 * reach)
    lit, sky = _even(solid, hits.depth, flat, lit, sky, 0.02 * reach)
    albedo = np.broadcast_to(np.asarray(color, np.float32), mesh.vertices.shape)[mesh.faces[face]]
    albedo = np.einsum("nk,nkc->nc", barycentric, albedo)
    key = np.maximum(normals @ lamp, 0) * lit
    fill = np.maximum(normals @ _unit(right - 0.3 * forward), 0) * 0.16
    light = 1.05 * key + (0.26 + 0.10 * normals[:, 1] + fill) * (0.15 + 0.85 * sky)
    gloss = np.maximum(normals @ _unit(lamp - forward), 0) ** 40 * lit
    edge = (1 - np.clip(np.einsum("nc,nc->n", normals, viewer), 0, 1)) ** 5 * sky
    return np.clip(albedo * light[:, None] + (0.05 * gloss + 0.12 * edge)[:, None], 0, 1)


def _ground(scene, camera, floor, solid, origins, directions, reach):
    """The shadow [H, W] on the visible ground, in [0, 1]; computed at every other pixel, since it is smooth."""
    origins, directions = origins[::2, ::2], directions[::2, ::2]
    depth = (floor - origins[..., 1]) / np.minimum(directions[..., 1], -1e-9)
    seen = ~solid[::2, ::2] & (depth > 0) & (directions[..., 1] < 0)
    start = (origins + depth[..., None] * directions)[seen] + [0, 1e-3 * reach, 0]
    up = np.broadcast_to(np.array([0, 1, 0], np.float32), start.shape)
    lit, sky = _light(scene, start, up, _lamp(camera), seen, reach, side=8)
    shadow = np.zeros(seen.shape)
    shadow[seen] = 0.34 * (1 - lit) + 0.55 * (1 - sky)
    shadow, weight = (ndimage.uniform_filter(ndimage.uniform_filter(p, 8), 5) for p in (shadow, seen.astype(float)))
    shadow = np.repeat(np.repeat(shadow / np.maximum(weight, 1e-3), 2, 0), 2, 1)[: len(solid), : len(solid)]
    inwards = np.minimum(np.arange(len(solid)), np.arange(len(solid))[::-1]) + 0.5
    rim = np.clip(inwards / (0.14 * len(solid)), 0, 1)
    rim = rim**2 * (3 - 2 * rim)  # fades out before the picture's edge
    return np.clip(shadow * rim * rim[:, None], 0, 1)


def _lamp(camera):
    """The unit direction [3] of the lamp: above, over the viewer's left shoulder."""
    right, _, forward = camera.rotation
    return _unit(-0.5 * right - 0.4 * forward + [0, 1.0, 0])


def _side(a, b):
    """[N, 1]: -1 if vectors [N, 3] form an obtuse angle, else 1."""
    return np.where(np.einsum("nc,nc->n", a, b) < 0, -1, 1)[:, None]


def _unit(vector):
    return vector / np.linalg.norm(vector)


def encode(linear) -> np.ndarray:
    """Linear values in [0, 1] to sRGB."""
    linear = np.clip(linear, 0, 1)
    return np.where(linear < 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def decode(srgb) -> np.ndarray:
    """sRGB values in [0, 1] to linear ones."""
    srgb = np.clip(srgb, 0, 1)
    return np.where(srgb < 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def _bytes(image) -> np.ndarray:
    return np.round(255 * image).astype(np.uint8)


def corner_normals(scene: Scene, mesh: Mesh, faces) -> np.ndarray:
    """Smooth normals [n, 3, 3] at the corners of faces [n]: area-weighted means over those faces at the vertex whose
    normals are within 40 degrees of the face's, so that sharp edges stay sharp."""
    order = np.argsort(mesh.faces.ravel(), kind="stable")  # corners grouped by vertex: starts[v] to starts[v + 1]
    starts = np.searchsorted(mesh.faces.ravel()[order], np.arange(len(mesh.vertices) + 1))
    vertex = mesh.faces[faces].ravel()
    counts = starts[vertex + 1] - starts[vertex]
    corner = np.repeat(np.arange(len(vertex)), counts)
    there = order[np.repeat(starts[vertex] - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())] // 3
    normals = (
        scene.normals[there]
        * (np.einsum("nc,nc->n", scene.normals[there], scene.normals[faces[corner // 3]]) > 0.77)[:, None]
    )
    normals *= scene.areas[there][:, None]
    summed = np.stack([np.bincount(corner, normals[:, axis], len(vertex)) for axis in range(3)], -1)
    summed /= np.maximum(np.linalg.norm(summed, axis=1, keepdims=True), 1e-300)
    return summed.reshape(-1, 3, 3)


def _round_normals(scene, mesh, face, barycentric):
    """Smooth normals [N, 3] at hits, interpolated from `corner_normals`."""
    faces, back = np.unique(face, return_inverse=True)
    normals = np.einsum("nk,nkc->nc", barycentric, corner_normals(scene, mesh, faces)[back])
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-300)


def _light(scene, start, normals, lamp, mask, reach, side=4):
    """Visibility of the lamp and of the sky from points: [N] and [N], by one ray each, so 0 or 1.

    Interleaved sampling: neighboring pixels in `mask` sample different parts of both, and a window of side x side
    pixels all of them; the caller filters over such windows.
    """
    count = side**2
    k = np.random.default_rng(0).permutation(count).reshape(side, side)
    rows, columns = np.nonzero(mask)
    k = k[rows % side, columns % side]
    radius, angle = np.sqrt((np.arange(count) + 0.5) / count), np.arange(count) * np.pi * (3 - np.sqrt(5))
    disc = np.stack([radius * np.cos(angle), radius * np.sin(angle), np.sqrt(1 - radius**2)], -1).astype(np.float32)
    across = _unit(np.cross(lamp, [0.3, 0.1, 0.9]))
    lamps = (lamp + 0.2 * disc[:, :2] @ np.stack([across, np.cross(lamp, across)])).astype(np.float32)
    skies = np.einsum("nk,nkc->nc", disc[k], _bases(normals))  # cosine-weighted: a disc projected to the hemisphere
    lit, sky = ~scene.blocked(start, lamps[k]), ~scene.blocked(start, skies, reach)
    return lit.astype(np.float32), sky.astype(np.float32)


def _bases(normals):
    """Right-handed bases [N, 3, 3] whose third rows are the normals [N, 3] (Duff et al. 2017)."""
    x, y, z = np.asarray(normals, np.float32).T
    sign = np.where(z < 0, np.float32(-1), np.float32(1))
    a = -1 / (sign + z)
    b = x * y * a
    bases = np.stack([1 + sign * x * x * a, sign * b, -sign * x, b, sign + y * y * a, -y, x, y, z], -1)
    return bases.reshape(-1, 3, 3)


def _even(mask, depth, normals, lit, sky, near):
    """`lit` and `sky` [N] averaged over windows of 4 x 4 pixels (those of `_light`), each over the pixels of similar
    normal and depth, so that shadows do not leak across edges."""
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return lit, sky
    box = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    planes = np.zeros((6, *np.pad(mask[box], 2).shape), np.float32)  # lit, sky, normal, depth
    inside = np.pad(mask[box], 2)
    planes[:, inside] = [lit, sky, *normals.T, depth[mask]]
    here = planes[:, 2:-2, 2:-2]
    total = np.zeros((3, *here.shape[1:]), np.float32)
    for row in range(4):
        for column in range(4):
            there = planes[:, row : row + here.shape[1], column : column + here.shape[2]]
            alike = np.einsum("chw,chw->hw", here[2:5], there[2:5]) > 0.85
            alike &= np.abs(here[5] - there[5]) < near
            total[:2] += there[:2] * alike
            total[2] += alike
    lit, sky, count = total[:, mask[box]]
    return lit / np.maximum(count, 1), sky / np.maximum(count, 1)
