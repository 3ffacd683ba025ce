"""Geometry processing of meshes and point clouds: files, orientation, inside tests, rays, depth, voxels.  No jax."""
