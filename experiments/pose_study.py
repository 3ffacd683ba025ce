"""Code and pose of scans in unknown position:  python -m experiments.pose_study RUN [--shapes=12] [--tilt=30] …

Surface points (with outward normals) of a run's unseen shapes are rotated, tilted, scaled and shifted at random; code
and pose are then fitted.  Prints the fraction of poses that are recovered, and the seconds per scan.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

import jonet
from jonet.data import sampling
from jonet.data import store as stores
from jonet.geometry.mesh import Similarity
from jonet.settings.fitting import PoseConfig
from jonet.tasks.unseen import unseen


def scan(mesh, number: int, count: int, tilt: float) -> tuple[np.ndarray, np.ndarray, Similarity]:
    """Points and normals [count, 3] in a random pose, and the similarity from there to the normalized frame."""
    rng = np.random.default_rng([0, number])
    points, normals = sampling.surface(mesh, count, rng)
    rotation = Rotation.from_euler("yxz", [rng.uniform(0, 360), *rng.uniform(-tilt, tilt, 2)], degrees=True).as_matrix()
    transform = Similarity(2 ** rng.uniform(-1, 1), rotation, rng.normal(size=3))
    return transform(points), normals @ rotation.T, transform.inverse()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run folder of deepsdf")
    parser.add_argument("--shapes", type=int, default=12, help="number of unseen shapes")
    parser.add_argument("--points", type=int, default=2048, help="number of points per scan")
    parser.add_argument("--tilt", type=float, default=30.0, help="largest tilt about each horizontal axis, in degrees")
    parser.add_argument("--tries", type=int, default=PoseConfig.tries, help="number of initial rotations")
    parser.add_argument("--rotations", choices=("yaw", "any"), default="yaw", help="initial rotations: about y, or any")
    parser.add_argument("--no-normals", action="store_true", help="fit to points without normals")
    options = parser.parse_args()
    model, store = jonet.load(options.run), stores.open(options.run / "store")
    meshes = [store.mesh(i) for i in unseen(store, model)[: options.shapes]]
    scans = [scan(mesh, i, options.points, options.tilt) for i, mesh in enumerate(meshes)]
    points, normals, ground_truth = map(list, zip(*scans, strict=True))
    begun = time.perf_counter()
    config = PoseConfig(rotations=options.rotations, tries=options.tries)
    found = model.fit_pose(points, normals=None if options.no_normals else normals, config=config)
    seconds = (time.perf_counter() - begun) / len(scans)
    rows = []
    for i, (got, wanted) in enumerate(zip(found.similarities, ground_truth, strict=True)):
        angle = np.degrees(Rotation.from_matrix(got.rotation @ wanted.rotation.T).magnitude())
        rows.append((angle, got.scale / wanted.scale, found.residual[i]))
        print(f"shape {i}: rotation off by {angle:.1f}°, scale by ×{rows[i][1]:.3f}, residual {rows[i][2]:.4f}")
    angle, scale, residual = np.array(rows).T
    right = (angle < 5) & (np.abs(np.log(scale)) < 0.05)
    print(f"pose within 5° and 5 %: {right.mean():.0%}; residual below 0.005: {np.mean(residual < 0.005):.0%}")
    print(f"{seconds:.1f} s per scan, including compilation")


if __name__ == "__main__":
    main()
