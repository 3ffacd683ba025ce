"""Renderings of meshes as networks are shown them: grey on white, from all around and from slightly above.

The cameras are those of the published renderings (Choy et al. 2016): a lens of 35 mm on a sensor 32 mm wide, any
azimuth, elevations of 25 to 30 degrees, the middle of the shape in the middle of the picture.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from jonet.data.meshes import Mesh
from jonet.data.rays import Camera, Scene, direction
from jonet.data.shading import corner_normals, encode

FOCAL = 35 / 32  # in widths of the picture
ELEVATIONS = (25.0, 30.0)
DISTANCES = (1.21, 1.5)  # from the middle, in diagonals of the bounding box: nothing is ever cut off
FINE = 2  # rays a pixel, each way
GREY = 0.62  # linear light that a surface gives back


def cameras(mesh: Mesh, count: int, size: int, rng: np.random.Generator) -> list[Camera]:
    """Cameras around a mesh, for square pictures."""
    middle, diagonal = mesh.bounds.mean(0), float(np.linalg.norm(np.ptp(mesh.bounds, axis=0)))
    azimuths, elevations = rng.uniform(0, 360, count), rng.uniform(*ELEVATIONS, count)
    distances = diagonal * rng.uniform(*DISTANCES, count)
    return [
        Camera.towards(direction((azimuth, elevation)), middle, distance, FOCAL * size, (size, size))
        for azimuth, elevation, distance in zip(azimuths, elevations, distances, strict=True)
    ]


def matrices(views: list[Camera]) -> np.ndarray:
    """Where cameras stand, [V, 3, 4] float32: p_camera = M[:, :3] p + M[:, 3]; pixels follow by `intrinsics`."""
    return np.float32([np.column_stack([v.rotation, -v.rotation @ v.position]) for v in views])


def intrinsics(size: int) -> np.ndarray:
    """From the cameras' space to pixels (column, row, 1) of a square picture, up to depth [3, 3]."""
    return np.array([[FOCAL * size, 0, size / 2], [0, FOCAL * size, size / 2], [0, 0, 1]])


def render(mesh: Mesh, views: list[Camera]) -> np.ndarray:
    """What cameras of one size see of a mesh -> [V, H, W] uint8, grey on white, edges smoothed.

    A lamp over the viewer's left shoulder and a bright sky, without shadows. Both sides of a face are shown. Light is
    computed at the corners of faces and interpolated between them, so that it costs little a pixel.
    """
    scene = Scene(mesh)
    corners, normals = mesh.corners, corner_normals(scene, mesh, np.arange(len(mesh.faces))).astype(np.float32)
    box = np.stack(np.meshgrid(*mesh.bounds.T, indexing="ij"), -1).reshape(-1, 3)
    pictures = np.full((len(views), *views[0].shape), 255, np.uint8)
    for picture, view in zip(pictures, views, strict=True):
        pixels = view.project(box)[0]
        left, top = np.clip(np.floor(pixels.min(0)), 0, view.shape[::-1]).astype(int)
        right, bottom = np.clip(np.ceil(pixels.max(0)), 0, view.shape[::-1]).astype(int)
        fine = dataclasses.replace(  # rays go through the mesh's box alone
            view,
            focal=view.focal * FINE,
            centre=tuple((view.centre - np.array([left, top])) * FINE),
            shape=((bottom - top) * FINE, (right - left) * FINE),
        )
        face, weights = scene.first(*fine.rays())
        hit = np.flatnonzero(face >= 0)
        light = np.ones(len(face), np.float32)
        light[hit] = np.einsum("nk,nk->n", weights(hit), _lit(scene, corners[:, 0], normals, view)[face[hit]])
        light = light.reshape(bottom - top, FINE, right - left, FINE).mean((1, 3))
        picture[top:bottom, left:right] = np.round(255 * encode(light))
    return pictures


def _lit(scene, places, normals, view):
    """Light at the corners of all faces [F, 3], as a camera sees them.  places [F, 3]: a point of each face."""
    right, _, forward = view.rotation
    lamp = [0, 1.0, 0] - 0.5 * right - 0.7 * forward
    seen = np.where(np.einsum("fc,fc->f", scene.normals, view.position - places) < 0, -1, 1).astype(np.float32)
    normals = normals * seen[:, None, None]
    key = np.maximum(normals @ np.float32(lamp / np.linalg.norm(lamp)), 0)
    return GREY * (0.72 * key + 0.22 + 0.14 * normals[..., 1])


def resized(pictures: np.ndarray, size: int) -> np.ndarray:
    """Pictures [V, H, W, 3] uint8 in another size [V, size, size, 3], bilinear (as the published program's Resize)."""
    if pictures.shape[1:3] == (size, size):
        return pictures
    return np.stack([np.asarray(Image.fromarray(p).resize((size, size), Image.Resampling.BILINEAR)) for p in pictures])
