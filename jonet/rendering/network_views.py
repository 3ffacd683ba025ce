"""Renderings of meshes as input images of networks: gray on white, from all around and slightly above.

The cameras are those of the published renderings (Choy et al. 2016): focal length 35 mm on a sensor 32 mm wide, any
azimuth, elevations of 25 to 30 degrees, the center of the shape in the center of the image.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from jonet.geometry.mesh import Mesh
from jonet.geometry.rays import Camera, Scene, direction
from jonet.rendering.shading import corner_normals, encode

FOCAL = 35 / 32  # focal length in image widths
ELEVATIONS = (25.0, 30.0)  # degrees
DISTANCES = (1.21, 1.5)  # from the center, in diagonals of the bounding box: the shape is always fully visible
FINE = 2  # supersampling: rays per pixel in each direction
GRAY = 0.62  # albedo, linear


def cameras(mesh: Mesh, count: int, size: int, rng: np.random.Generator) -> list[Camera]:
    """Random cameras around a mesh, for images of size x size pixels."""
    middle, diagonal = mesh.bounds.mean(0), float(np.linalg.norm(np.ptp(mesh.bounds, axis=0)))
    azimuths, elevations = rng.uniform(0, 360, count), rng.uniform(*ELEVATIONS, count)
    distances = diagonal * rng.uniform(*DISTANCES, count)
    return [
        Camera.towards(direction((azimuth, elevation)), middle, distance, FOCAL * size, (size, size))
        for azimuth, elevation, distance in zip(azimuths, elevations, distances, strict=True)
    ]


def matrices(views: list[Camera]) -> np.ndarray:
    """Extrinsic matrices [V, 3, 4] float32: p_camera = M[:, :3] p + M[:, 3]; pixels follow by `intrinsics`."""
    return np.array([np.column_stack([v.rotation, -v.rotation @ v.position]) for v in views], np.float32)


def intrinsics(size: int) -> np.ndarray:
    """The intrinsic matrix [3, 3]: camera space to homogeneous pixels (column, row, 1) of a square image."""
    return np.array([[FOCAL * size, 0, size / 2], [0, FOCAL * size, size / 2], [0, 0, 1]])


def render(mesh: Mesh, views: list[Camera]) -> np.ndarray:
    """Renders a mesh from cameras of one image size -> [V, H, W] uint8, gray on white, antialiased.

    A lamp over the viewer's left shoulder and a bright sky, without shadows; faces are two-sided.  Gouraud shading:
    light is computed at the corners of faces and interpolated, which is cheap per pixel.
    """
    scene = Scene(mesh)
    corners, normals = mesh.corners, corner_normals(scene, mesh, np.arange(len(mesh.faces))).astype(np.float32)
    box = np.stack(np.meshgrid(*mesh.bounds.T, indexing="ij"), -1).reshape(-1, 3)
    pictures = np.full((len(views), *views[0].shape), 255, np.uint8)
    for picture, view in zip(pictures, views, strict=True):
        pixels = view.project(box)[0]
        left, top = np.clip(np.floor(pixels.min(0)), 0, view.shape[::-1]).astype(int)
        right, bottom = np.clip(np.ceil(pixels.max(0)), 0, view.shape[::-1]).astype(int)
        fine = dataclasses.replace(  # the camera restricted to the image of the bounding box, at FINE times the pixels
            view,
            focal=view.focal * FINE,
            center=tuple((view.center - np.array([left, top])) * FINE),
            shape=((bottom - top) * FINE, (right - left) * FINE),
        )
        face, weights = scene.first(*fine.rays())
        hit = np.flatnonzero(face >= 0)
        light = np.ones(len(face), np.float32)
        light[hit] = np.einsum("nk,nk->n", weights(hit), _lit(scene, corners[:, 0], normals, view)[face[hit]])
        light = light.reshape(bottom - top, FINE, right - left, FINE).mean((1, 3))
        picture[top:bottom, left:right] = np.round(255 * encode(light))
    return pictures


def _lit(scene, points, normals, view):
    """Linear light [F, 3] at the corners of faces.  points [F, 3]: one on each face; normals [F, 3, 3]: at corners."""
    right, _, forward = view.rotation
    lamp = [0, 1.0, 0] - 0.5 * right - 0.7 * forward
    side = np.where(np.einsum("fc,fc->f", scene.normals, view.position - points) < 0, -1, 1).astype(np.float32)
    normals = normals * side[:, None, None]
    key = np.maximum(normals @ np.float32(lamp / np.linalg.norm(lamp)), 0)
    return GRAY * (0.72 * key + 0.22 + 0.14 * normals[..., 1])


def eight_bit(picture: Image.Image) -> Image.Image:
    """An image with 8 bits per channel: gray levels of 16 bits are scaled (Pillow would clip them at 255)."""
    if not picture.mode.startswith("I"):  # modes I;16, I;16B, …, and I of older versions
        return picture
    return Image.fromarray(np.round(np.asarray(picture, np.float64) / 257).astype(np.uint8))


def resized(pictures: np.ndarray, size: int) -> np.ndarray:
    """Images [V, H, W, 3] uint8 resized to [V, size, size, 3], bilinear (as Resize in the published program).

    Images that are not square are squeezed.
    """
    if pictures.shape[1:3] == (size, size):
        return pictures
    return np.stack([np.asarray(Image.fromarray(p).resize((size, size), Image.Resampling.BILINEAR)) for p in pictures])
