"""What an independent library takes for a manifold."""

import manifold3d
import numpy as np

from jonet.geometry.mesh import Mesh


def accepts(mesh: Mesh) -> bool:
    """Whether the independent library takes the mesh for a manifold, all of it."""
    solid = manifold3d.Manifold(manifold3d.Mesh(mesh.vertices.astype(np.float32), mesh.faces.astype(np.uint32)))
    return solid.status() == manifold3d.Error.NoError
