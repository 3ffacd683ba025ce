"""The octahedra whose extraction is in the report of programs: what they are, and what is written down of them."""

import functools

import jax
import pytest

from experiments.accelerators import octahedra
from jonet.inference.surfaces import block_meshes, blocks, cells, device
from jonet.networks import field
from jonet.networks.deepsdf import Specs

pytestmark = pytest.mark.unoptimized


def test_passes_and_places_are_those_that_are_written_down(monkeypatch):
    """Of a network so small that a processor extracts them at once."""
    seen = []

    def evaluated(platform, fields, tiles, first, count, out):
        group = min(len(out[0]) // 2, field.FILLING) // len(out)  # of an accelerator
        jax.debug.callback(lambda a, b: seen.append(-(-int(b - a) // group)), first, count, ordered=True)
        return field.evaluate_lists(platform, fields, tiles, first, count, out)

    for module in (blocks, block_meshes):
        monkeypatch.setattr(module, "evaluate_lists", evaluated)
        monkeypatch.setattr(module, "program", functools.cache(module.program.__wrapped__))
    small = Specs(latent_size=2, dims=(11, 12), dropout=(), norm_layers=(0, 1), latent_in=(1,))
    evaluator = octahedra.evaluator(octahedra.network(small))
    meshes, _ = device.extract(evaluator, cells.COARSE, None, octahedra.SECANTS, True)
    jax.effects_barrier()
    for mesh in meshes:
        x, y, z = octahedra.WEIGHTS
        assert mesh.volume == pytest.approx(4 / 3 * octahedra.RADIUS**3 / (x * y * z), rel=1e-3)
        assert 0.95 * octahedra.VERTICES < len(mesh.vertices) <= octahedra.VERTICES
    assert octahedra.dealt(evaluator).layout[3:] == device._grown[octahedra.RESOLUTION, 8, octahedra.SHAPES][:2]
    expected = [octahedra.PASSES[part][name] for part, name in ORDER]
    assert seen == expected and octahedra.PASSES["blocks"]["flood"] == octahedra.PASSES["meshes"]["project"] == 1


ORDER = [*(("blocks", name) for name in ("coarsest", "bounds", "centers", "new_blocks"))]
ORDER += [("meshes", "moving"), ("meshes", "normals")]
