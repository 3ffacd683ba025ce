"""Meshes of boxes and balls, and what goes wrong with meshes: turned, doubled, separated and missing faces."""

import numpy as np
import trimesh

from jonet.geometry.mesh import Mesh


def box(low=(-1, -1, -1), high=(1, 1, 1), name="box"):
    made = trimesh.creation.box(bounds=[low, high])
    return Mesh(made.vertices, made.faces, name=name)


def ball(radius=1.0, center=(0, 0, 0), subdivisions=3):
    made = trimesh.creation.icosphere(subdivisions, radius)
    return Mesh(made.vertices + np.array(center), made.faces, name="ball")


def turned(mesh, which=slice(None)):
    faces = mesh.faces.copy()
    faces[which] = faces[which][:, ::-1]
    return Mesh(mesh.vertices, faces, name=mesh.name)


def joined(*meshes):
    offsets = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes])
    faces = [mesh.faces + offset for mesh, offset in zip(meshes, offsets, strict=False)]
    return Mesh(np.concatenate([mesh.vertices for mesh in meshes]), np.concatenate(faces), name="joined")


def soup(mesh):
    return Mesh(mesh.corners.reshape(-1, 3), np.arange(3 * len(mesh.faces)).reshape(-1, 3), name="soup")


def kept(mesh, which):
    return Mesh(mesh.vertices, mesh.faces[which], name=mesh.name)


CUBE = box()
