"""Programs on accelerators: what is counted in compiled texts and, with the compilers installed, what they compile."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paths import ROOT

from experiments.accelerators import __main__ as accelerators
from experiments.accelerators import (
    checks,
    counting,
    gpu_traffic,
    packages,
    programs,
    roofline,
    rows,
    table,
    targets,
    tpu_cycles,
    unsampled,
)
from experiments.accelerators.hlo import Module
from jonet import parallel
from jonet.chips import CHIPS
from jonet.errors import ConfigError
from jonet.inference.encode import Inputs
from jonet.networks import occupancy
from jonet.networks.deepsdf import Specs
from jonet.run import plan
from jonet.tasks import registry
from jonet.training import costs
from jonet.training.optimizers import Optimizer

SIDE = 16
absent = packages.missing("tpu") or packages.missing("gpu")
needs_compilers = pytest.mark.skipif(bool(absent), reason=absent)


def compiled(function, *arguments) -> Module:
    return Module.parse(jax.jit(function).lower(*arguments).compile().as_text())


def chained(count):
    """`count` products of a matrix with itself in a loop; count: a number, or an argument."""
    return lambda x, *more: jax.lax.fori_loop(0, *(more or [count]), lambda i, y: jnp.tanh(y @ x), x)


def square():
    return jnp.ones((SIDE, SIDE))


def test_products_in_a_loop_are_multiplied_out():
    module = compiled(chained(7), square())
    assert counting.matrix_operations(module) == {"f32": 7 * 2 * SIDE**3}


def test_passes_of_a_loop_whose_number_is_data_are_given():
    module = compiled(chained(0), square(), 5)
    assert counting.matrix_operations(module) == {"f32": 2 * SIDE**3}
    assert counting.matrix_operations(module, [5]) == {"f32": 5 * 2 * SIDE**3}


def test_passes_are_given_from_the_outer_loop_inwards():
    def nested(x, outer, inner):
        return jax.lax.fori_loop(0, outer, lambda i, y: jax.lax.fori_loop(0, inner, lambda j, z: jnp.tanh(z @ x), y), x)

    module = compiled(nested, square(), 3, 4)
    assert counting.matrix_operations(module, [3, 4]) == {"f32": 12 * 2 * SIDE**3}


def test_passes_are_given_by_the_scope_that_a_loop_is_in():
    def scoped(x, outer, inner):
        def within(i, y):
            with jax.named_scope("inner"):
                return jax.lax.fori_loop(0, inner, lambda j, z: jnp.tanh(z @ x), y)

        with jax.named_scope("outer"):
            x = jax.lax.fori_loop(0, outer, within, x)
        with jax.named_scope("last"):
            return jax.lax.fori_loop(0, outer, lambda i, y: jnp.tanh(y @ x), x)

    module = compiled(scoped, square(), 3, 4)
    passes = {"outer": 3, "inner": 4, "last": 2}
    assert counting.matrix_operations(module, passes) == {"f32": (3 * 4 + 2) * 2 * SIDE**3}
    with pytest.raises(KeyError, match="last"):
        counting.matrix_operations(module, {"outer": 3, "inner": 4})


SINGLE = """HloModule single
%some (p0: s32[8,50], p1: s32[30,1]) -> s32[30,8] {
  %p0 = s32[8,50]{1,0} parameter(0)
  %p1 = s32[30,1]{1,0} parameter(1)
  ROOT %gather = s32[30,8]{1,0} gather(%p0, %p1), offset_dims={1}, index_vector_dim=1, slice_sizes={8,1}
}

ENTRY %main (a: s32[8,50], b: s32[30,1], c: s32[30]) -> s32[100] {
  %a = s32[8,50]{1,0} parameter(0)
  %b = s32[30,1]{1,0} parameter(1)
  %c = s32[30]{0} parameter(2)
  %read = s32[30,8]{1,0} fusion(%a, %b), kind=kCustom, calls=%some
  %empty = s32[100]{0} constant({...})
  %sorted = s32[30]{0} sort(%c), dimensions={0}, to_apply=%less
  ROOT %written = s32[100]{0} scatter(%empty, %b, %sorted), index_vector_dim=1, to_apply=%add
}
"""


def test_items_that_are_read_written_and_sorted_one_by_one():
    assert counting.single_items(Module.parse(SINGLE)) == 30 + 30 + 30


def test_a_convolution_counts_the_places_inside():
    """5 outputs with 3 taps each, of which the first and the last miss one: 13 places, 2 → 4 channels, 6 of a batch."""
    module = compiled(
        lambda x, w: jax.lax.conv_general_dilated(x, w, (1,), [(1, 1)], dimension_numbers=("NWC", "WIO", "NWC")),
        jnp.ones((6, 5, 2)),
        jnp.ones((3, 2, 4)),
    )
    assert counting.matrix_operations(module) == {"f32": 2 * 6 * 4 * 2 * 13}


BATCHED = """HloModule batched
ENTRY %main (a: bf16[8,32,64], b: bf16[8,64,16]) -> bf16[8,32,16] {
  %a = bf16[8,32,64]{2,1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[8,64,16]{2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %c = bf16[8,32,16]{2,1,0} convolution(%a, %b), WINDOW, CYCLES
}
""".replace("WINDOW", "window={size=8 stride=7 lhs_dilate=8}, dim_labels=0bf_0io->0bf").replace(
    "CYCLES", 'backend_config={"window_config":{"estimated_cycles":"100"}}'
)


def test_a_batched_product_of_a_tpu_is_written_as_a_convolution():
    module = Module.parse(BATCHED)
    assert counting.matrix_operations(module) == {"bf16": 2 * 8 * 32 * 64 * 16}
    assert counting.bytes_of(module) == 2 * (8 * 32 * 64 + 8 * 32 * 16)  # without what is on the chip
    assert tpu_cycles.cycles(module) == 100
    assert tpu_cycles.seconds(module, CHIPS["v5e"]) == pytest.approx(100 / 1.5e9)


GPU = """HloModule gpu
%fused_transpose (p0: f32[1024,512], p1: s32[]) -> f32[512,256] {
  %p0 = f32[1024,512]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %slice = f32[256,512]{1,0} dynamic-slice(%p0, %p1, %p1), dynamic_slice_sizes={256,512}
  ROOT %transpose.1 = f32[512,256]{1,0} transpose(%slice), dimensions={1,0}, metadata={op_name="jit(step)/transpose"}
}

%body (t: (s32[], f32[1024,512])) -> (s32[], f32[1024,512]) {
  %t = (s32[], f32[1024,512]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = f32[1024,512]{1,0} get-tuple-element(%t), index=1
  %turned = f32[512,256]{1,0} fusion(%x, %i), kind=kInput, calls=%fused_transpose
  %gemm = (f32[1024,256]{1,0}, s8[4194304]{0}) custom-call(%x, %turned), custom_call_target="__cublas$gemm", AXES
  ROOT %tuple = (s32[], f32[1024,512]{1,0}) tuple(%i, %x)
}

%condition (t: (s32[], f32[1024,512])) -> pred[] {
  %t = (s32[], f32[1024,512]{1,0}) parameter(0)
  ROOT %less = pred[] custom-call(%t)
}

ENTRY %main (t: (s32[], f32[1024,512])) -> (s32[], f32[1024,512]) {
  %t = (s32[], f32[1024,512]{1,0}) parameter(0)
  ROOT %loop = (s32[], f32[1024,512]{1,0}) while(%t), condition=%condition, body=%body, TRIPS
}
""".replace("AXES", 'backend_config={"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}').replace(
    "TRIPS", 'backend_config={"known_trip_count":{"n":"3"}}'
)


def test_kernels_and_bytes_of_a_gpu():
    """In each of 3 passes: a transpose that reads a quarter of its operand, and a product with a workspace."""
    module = Module.parse(GPU)
    turned, product = 4 * 2 * 256 * 512 + 4, 4 * (1024 * 512 + 512 * 256 + 1024 * 256)
    assert counting.kernels(module) == 6
    assert counting.bytes_of(module) == 3 * (turned + product)
    assert counting.matrix_operations(module) == {"f32": 3 * 2 * 1024 * 256 * 512}
    assert counting.largest_moves(module) == [
        {"bytes": 3 * turned, "type": "f32[512,256]{1,0}", "source": "jit(step)/transpose"}
    ]
    chip = CHIPS["h100"]
    computed = 2 * 1024 * 256 * 512 / chip.rate("highest")
    assert computed > product / chip.bandwidth
    floor = 3 * (turned / chip.bandwidth + computed)
    assert gpu_traffic.seconds(module, chip, "highest") == pytest.approx(floor)


REDUCED = """HloModule reduced
ENTRY %main (a: f32[], b: f32[512,8]) -> (f32[], f32[512,8]) {
  %a = f32[] parameter(0)
  %b = f32[512,8]{1,0} parameter(1)
  %first = f32[] all-reduce(%a), replica_groups={}, to_apply=%add
  %start = (f32[512,8]{1,0:T(8,128)S(1)}, f32[512]{0}) all-reduce-start(%b, %a), replica_groups={}, to_apply=%add
  %done = (f32[512,8]{1,0}, f32[512]{0}) all-reduce-done(%start)
  %whole = f32[1024,8]{1,0} all-gather(%b), dimensions={0}
  ROOT %both = (f32[], f32[512,8]{1,0}) tuple(%first, %b)
}
"""


def test_collectives_by_kind():
    """One that starts and is done later counts once, and so do arrays on the chip."""
    found = counting.collectives(Module.parse(REDUCED))
    assert found == {"all-reduce": (2, 4 + 4 * (512 * 8 + 512)), "all-gather": (1, 4 * 1024 * 8)}


# Programs, of tiny sizes on the processor

TINY = Specs(latent_size=4, dims=(16,) * 3, dropout=(), norm_layers=(0, 1, 2), latent_in=(2,))
QUICK = {"batch_shapes": 2, "batch_points": 16, "network": TINY, "optimizer": Optimizer()}  # no products of Muon


def tiny(measured: bool) -> dict:
    """A program of each kind that compiles in a moment."""
    shapes = registry.find("deepsdf").presets["quick"].shapes
    few = dataclasses.replace(shapes, train=3, test=0)
    drawn = unsampled.Few(rows=64) if measured else None
    return {
        "tiny/train": lambda: programs.train("deepsdf", "quick", drawn, shapes=few, **QUICK),
        "tiny/evaluate": lambda: programs.evaluate(programs.decoder(TINY), "highest", tiles=8),
        "tiny/evaluate_gradient": lambda: programs.evaluate(programs.decoder(TINY), "default", True, tiles=8),
        "tiny/refine": lambda: programs.refine(programs.decoder(TINY), blocks=1, shapes=1),
        "tiny/gauss_newton": lambda: programs.newton(programs.decoder(TINY), "highest", codes=1, blocks=1),
        "tiny/adam": lambda: programs.adam(programs.decoder(TINY), "highest", codes=1, blocks=1, steps=2, rows=64),
        "tiny/refused": lambda: programs.train("deepsdf", "quick", drawn, place="streamed", draw="rows", **QUICK),
    }


def test_the_same_command_measures_where_there_are_chips(tmp_path, monkeypatch, capsys):
    """The processor stands in for them; every kind of program runs, and its results agree with those recorded."""
    monkeypatch.setattr(programs, "programs", lambda drawn: tiny(drawn is not None))
    monkeypatch.setattr(rows, "SECONDS", 0.0)
    file = tmp_path / "rows.json"
    assert accelerators.main(["--target=here", f"--json={file}"]) == 0
    found = {row["program"]: row for row in json.loads(file.read_text())}
    assert list(found) == list(tiny(True))
    refused = found.pop("tiny/refused")
    assert "windows" in refused["error"] and "milliseconds" not in refused
    for row in found.values():
        assert row.keys() >= KEYS and row["mark"] == "M" and row["target"] == "here"
        assert row["milliseconds"] > 0 and row["rate"] > 0
        assert row["share"] is None and row["operations"] > 0 and row["bytes"] > 0 and "error" not in row
    assert [row["unit"] for row in found.values()] == ["steps", "points", "points", "faces", "codes", "codes"]
    said = capsys.readouterr().out
    assert "TOO MUCH" not in said and all(f"{name}: " in said for name in checks.TOLERANCES)


KEYS = {  # of every row without an error, whatever the chip
    *("program", "target", "mark", "precision", "milliseconds", "share", "rate", "unit", "operations", "bytes"),
    *("arguments", "temporaries", "collectives", "collective_bytes", "kernels", "moves", "single_items", "jax"),
}


def test_a_difference_from_the_record_is_said():
    assert "TOO MUCH" in checks.lines({"volumes": 0.1})[0] and "TOO MUCH" in checks.lines({"areas": float("nan")})[0]
    assert "TOO MUCH" not in checks.lines({"volumes": 1e-4})[0]


def test_programs_are_not_begun_after_their_time(tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "programs", lambda drawn: tiny(True))
    file = tmp_path / "rows.json"
    some = ["--programs=tiny/[rt]*", "--programs=*/refine"]
    assert accelerators.main(["--target=here", "--minutes=1e-9", f"--json={file}", *some]) == 0
    found = json.loads(file.read_text())
    assert {row["error"] for row in found} == {"not begun within 1e-09 minutes"}
    assert [row["program"] for row in found] == ["tiny/train", "tiny/refine", "tiny/refused"]


def test_stores_without_data_have_the_sizes_of_the_preset():
    task = registry.find("onet_voxels")
    config = task.presets["paper"]
    whole, few = unsampled.store(task, config), unsampled.store(task, config, unsampled.Few(3, 2))
    assert (len(whole), len(few)) == (27_000, 3)  # a tenth of 30,000 is for validation
    assert whole.arrays["occupancy"].values.shape == (27_000 * 100_000, 3)
    assert whole.arrays["occupancy"].values.strides == (0, 0)  # one number
    assert few.arrays["occupancy"].values.shape == (6, 3) and few.arrays["occupancy"].values.std() > 0.5
    np.testing.assert_array_equal(few.arrays["occupancy"].counts[0], [1, 1])
    assert whole.arrays["voxels"].values.shape == (27_000, 32**3 // 8)


def test_the_step_of_a_preset_is_lowered_without_its_data():
    """Its work is that of the decoder: forward, and backward to weights and inputs, of 2 × 16 points."""
    platform = parallel.Platform("tpu", 16 << 30)
    with parallel.absent(jax.devices(), platform):
        call = tiny(False)["tiny/train"]()
        state = call.arguments[0]
        assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(state))
        module = Module.parse(call.mapped.lower(*call.arguments).compile().as_text())
    found = sum(counting.matrix_operations(module, [1]).values())
    layers = [7 * 16, 16 * 9, 16 * 16, 16]  # of which the first knows its code once a shape
    assert 0.5 * 6 * 32 * sum(layers) < found < 3 * 6 * 32 * sum(layers)


@pytest.mark.parametrize("gradient", [False, True])
def test_evaluation_of_the_published_decoder_takes_less_than_a_gigabyte(gradient):
    """Counted in the traced program; compilers need up to 1.6 times of that."""
    with parallel.absent(jax.devices(), parallel.Platform("tpu", 16 << 30)):
        call = programs.evaluate(programs.decoder(Specs()), "highest", gradient)
        traced = call.mapped.jitted().trace(*call.arguments)
    assert 1e8 < costs._memory(traced.jaxpr.jaxpr) < 1e9 / 1.6


@pytest.mark.parametrize(
    ("kind", "given", "precision"), [("gpu", "voxels", "highest"), ("gpu", "points", "high"), ("tpu", "voxels", "high")]
)
def test_floors_of_encoders_are_of_the_products_they_have(kind, given, precision):
    """GPUs convolve in full float32."""
    network = programs.conditional(occupancy.Specs(c_dim=2, hidden_size=2, n_blocks=1, encoder_width=2, **NAMED[given]))
    with parallel.absent(jax.devices(), parallel.Platform(kind, 16 << 30)):
        assert programs.encode(network, Inputs(given, 32), shapes=1).precision == precision


NAMED = {"voxels": {"encoder": "voxel_simple"}, "points": {"encoder": "pointnet_resnet"}}


def test_targets_and_programs_that_do_not_exist(capsys):
    with pytest.raises(ConfigError, match="there are v5e-1"):
        targets.target("v9-1")
    assert accelerators.main(["--target=here", "--programs=nothing"]) == 1
    assert "--programs='*' is all" in capsys.readouterr().err
    assert accelerators.main(["--target=here", "--programs=deepsdf/*", "--programs=nothing"]) == 1
    assert "'nothing'" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="one of them"):
        accelerators.parse(["--target=here", "--target=v5e-1"])


def test_without_the_packages_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(packages.NEEDED, "tpu", ("no-such-compiler",))
    with pytest.raises(ConfigError, match=r"needs no-such-compiler; install them: pip install -e '\.\[accelerators\]'"):
        targets.target("v5e-1")


ROW = {
    **{"program": "deepsdf/paper/train", "target": "v5e-1", "mark": "C", "precision": "bfloat16", "share": 0.4},
    **{"milliseconds": 125.0, "rate": 8.0, "unit": "steps", "operations": 9.9e12, "bytes": 5e10, "arguments": 4e9},
    **{"temporaries": 2e7, "collectives": {}, "collective_bytes": 0, "moves": []},
}


def test_tables(tmp_path):
    """Four chips: 32 ms of computing and 4 · 7.5 MB · ¾ · 2 in links of 200 GB/s."""
    moved = [{"bytes": 2e9, "type": "(f32[8]{0}, bf16[64,512]{1,0:T(8,128)S(1)})", "source": "jit(step)/transpose"}]
    one = ROW | {"moves": moved}
    several = ROW | {"target": "v5e-4", "milliseconds": 32.0, "collectives": {"all-reduce": 2}, "collective_bytes": 4e9}
    failed = {"program": "onet_points/paper/train", "target": "v5e-1", "mark": "C", "error": "it needs more"}
    elsewhere = several | {"program": "purify/paper/train"}
    document = tmp_path / "page.md"
    document.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    table.write(document, [one, several, failed, elsewhere])
    text = document.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "purify" not in text  # of one chip there is nothing to show
    assert "| program | v5e-1 [C] |" in text and "125 ms, 40 %" in text
    assert "`onet_points/paper/train` on v5e-1: it needs more" in text
    assert "| `deepsdf/paper/train` | v5e-1 | 2 | `bf16[64,512]` | `jit(step)/transpose` |" in text
    apart = 1e3 * 2 * 0.75 * 4e9 / CHIPS["v5e"].link
    assert table.communication(several, 4, CHIPS["v5e"].link) == apart == 30
    assert f"| 30 | {125 / 4 / 62:.0%} | {125 / 155:.1%} |" in text
    assert table.replaced([ROW, several], ROW | {"rate": 9.0}) == [several, ROW | {"rate": 9.0}]


def test_cells_of_other_programs_and_targets_stay(tmp_path):
    moved = [{"bytes": 2e9, "type": "f32[8]{0}", "source": "jit(step)/transpose"}]
    several = ROW | {"target": "v5e-4", "milliseconds": 32.0, "collectives": {"all-reduce": 2}, "collective_bytes": 4e9}
    encoding = ROW | {"program": "onet_points/paper/encode", "unit": "shapes", "rate": 5e3}
    document, order = tmp_path / "page.md", ["deepsdf/quick/train", "deepsdf/paper/train"]
    document.write_text(f"{table.BEGIN}\n{table.END}")
    table.write(document, [ROW | {"moves": moved}, several, encoding], order)
    before = document.read_text()
    table.write(document, [], order)
    assert document.read_text() == before
    fewer = [{"bytes": 1e9, "type": "f32[4]{0}", "source": "jit(step)/copy"}]
    faster = ROW | {"target": "h100-1", "mark": "B", "milliseconds": 50.0, "moves": fewer}
    quick = ROW | {"program": "deepsdf/quick/train", "milliseconds": 1.0}
    table.write(document, [faster, quick], order)
    lines = document.read_text().splitlines()
    assert [line for line in lines if " ms, " in line][:2] == [
        "| `deepsdf/quick/train` |  | 1 ms, 40 % |",
        "| `deepsdf/paper/train` | ≥ 50 ms, 40 % | 125 ms, 40 % |",
    ]
    assert [line.split(" | ")[1] for line in lines if "jit(step)" in line] == ["v5e-1", "h100-1"]
    assert sum(line in lines for line in before.splitlines() if "v5e-4" in line or "/encode" in line) == 2
    table.write(document, [ROW | {"milliseconds": 130.0}], order)  # its own are replaced, and its copies are gone
    text = document.read_text()
    assert "≥ 50 ms, 40 % | 130 ms, 40 % |" in text and "step)/transpose" not in text and "jit(step)/copy" in text

    figure = roofline.svg([ROW, encoding])
    assert roofline.svg([], figure) == figure
    both = roofline.svg([faster, encoding | {"milliseconds": 9.0}], figure)
    assert both.count("<title>") == 3 and both.count("/encode on v5e-1: 9 ms") == 1 and ">h100<" in both


def test_the_figure_has_programs_beside_the_roof_of_their_chip():
    """One that only moves memory lies on the sloping line; several chips, and what has no operations, are left out."""
    chip = CHIPS["h100"]
    moving = {**ROW, "target": "h100-1", "operations": 3e12, "bytes": 1e12, "milliseconds": 1e15 / chip.bandwidth}
    encoding = {**ROW, "program": "onet_points/paper/encode", "unit": "shapes"}
    left_out = [
        {**ROW, "target": "v5e-4"},
        {**ROW, "operations": 0.0},
        {"program": "a", "target": "v5e-1", "error": "b"},
    ]
    text = roofline.svg([moving, encoding, *left_out])
    shown = re.findall(r'translate\((\S+) (\S+)\)" fill="([^"]*)" fill-opacity="0.7"><title>(\S+) on', text)
    assert [(color, name) for *_, color, name in shown] == [
        (roofline.COLORS["h100"], moving["program"]),
        (roofline.COLORS["v5e"], encoding["program"]),
    ]
    sloping = re.search(rf'M(\S+) (\S+)L(\S+) (\S+)H\S+" fill="none" stroke="{roofline.COLORS["h100"]}"', text)
    left, low, corner, high = map(float, sloping.groups())
    x, y = map(float, shown[0][:2])
    assert left < x < corner and y == pytest.approx(low + (x - left) * (high - low) / (corner - left), abs=0.2)
    kinds = [roofline.kind(ROW | {"program": name, "unit": unit}) for name, unit in KINDS]
    assert kinds == ["training", "training", "encoders", "codes", "fields and meshes", "fields and meshes"]
    assert set(kinds) == roofline.MARKS.keys() and all(f">{kind}</text>" in text for kind in kinds)


KINDS = [
    *(("deepsdf/quick/train", "steps"), ("deepsdf/paper/step/bfloat16/whole", "steps")),
    *(("onet_points/paper/encode", "shapes"), ("deepsdf/6x128/adam/highest", "codes")),
    *(("deepsdf/6x128/evaluate/high", "points"), ("spline/128/solve", "levels")),
]


# With the compilers


def command(folder, *options: str) -> dict[tuple[str, str], dict]:
    """Rows of the command, run as its own process, by program and target."""
    file = folder / "rows.json"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    arguments = [sys.executable, "-m", "experiments.accelerators", f"--json={file}", *options]
    subprocess.run(arguments, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=1800)
    return {(row["program"], row["target"]): row for row in json.loads(file.read_text())}


@pytest.fixture(scope="module")
def compiled_rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    command(folder, "--target=v5e-1", "--target=h100-1", "--programs=deepsdf/6x128/evaluate*/highest")
    return command(folder, *(f"--target={name}" for name in CHECKED), "--programs=deepsdf/quick/train")


CHECKED = ("v5e-1", "h100-1", "v5e-4", "h100-2")


@needs_compilers
@pytest.mark.parametrize("target", CHECKED)
def test_quick_compiles_and_fits(compiled_rows, target):
    row = compiled_rows["deepsdf/quick/train", target]
    assert row.keys() == KEYS and row["arguments"] + row["temporaries"] < 2e9
    assert row["mark"] == ("C" if target.startswith("v5e") else "B") and 0 < row["share"] < 0.2


@needs_compilers
def test_quick_starts_few_kernels(compiled_rows):
    """Each takes 2 to 3 µs to start, which is what limits a small step on a GPU."""
    assert compiled_rows["deepsdf/quick/train", "h100-1"]["kernels"] <= 140


@needs_compilers
@pytest.mark.parametrize("target", ["v5e-4", "h100-2"])
def test_a_step_on_several_chips_has_two_sums(compiled_rows, target):
    """One of the number of shapes, which the gradient needs, and one of everything else."""
    row = compiled_rows["deepsdf/quick/train", target]
    assert row["collectives"] == {"all-reduce": 2}
    assert compiled_rows["deepsdf/quick/train", target.split("-")[0] + "-1"]["collectives"] == {}


@needs_compilers
@pytest.mark.parametrize("target", ["v5e-1", "h100-1"])
def test_evaluation_has_the_operations_of_its_layers(compiled_rows, target):
    """6 × 128 with a code of 64: 3 → 128 → 128 → 61, joined by 3 coordinates (the code is folded), → 128 → … → 1."""
    layers = 3 * 128 + 128 * 128 + 128 * 61 + 64 * 128 + 128 * 128 + 128 * 128 + 128
    row = compiled_rows["deepsdf/6x128/evaluate/highest", target]
    assert row["operations"] == pytest.approx(2 * layers * 512 * 128, rel=0.02)
    gradient = compiled_rows["deepsdf/6x128/evaluate_gradient/highest", target]
    # twice the products of a point, of half as many points at once
    assert gradient["operations"] == pytest.approx(row["operations"], rel=0.1)


PLANNED = (0.95, 2.6)  # a plan's memory over that of the compiled step; 1.0 to 2.54 were seen
SCRATCH = 128e6  # bytes that a program may hold more than its plan: a v6e takes 104 MB for the least of steps


def check_plan(row: dict) -> None:
    """A plan has the memory that the compiled training step of its preset needs, within `PLANNED`."""
    (task, preset, _), chip = row["program"].split("/"), row["target"].partition("-")[0]
    training = plan.make(registry.find(task), registry.find(task).presets[preset], chip).training
    assert training
    planned, held = training.samples + training.step, row["arguments"] + row["temporaries"]
    enough = planned > PLANNED[0] * held or (chip == "v6e" and planned > held - SCRATCH)
    assert enough and planned < PLANNED[1] * held, (row["program"], row["target"], planned / held)


@needs_compilers
@pytest.mark.parametrize("target", ["v5e-1", "h100-1"])
def test_plans_have_the_memory_of_compiled_programs(compiled_rows, target):
    """And evaluation takes less than 1 GB, weights and tiles included."""
    check_plan(compiled_rows["deepsdf/quick/train", target])
    evaluations = [row for (name, at), row in compiled_rows.items() if "/evaluate" in name and at == target]
    assert len(evaluations) == 2 and all(row["arguments"] + row["temporaries"] < 1e9 for row in evaluations)


@needs_compilers
@pytest.mark.parametrize("program", ["deepsdf/quick/train", "deepsdf/6x128/evaluate/highest"])
def test_large_copies_are_known(compiled_rows, program):
    for (name, _), row in compiled_rows.items():
        if name == program:
            check_copies(row)


# All programs, which takes hours; or the rows that the command has written to the file of this environment variable

ROWS = os.environ.get("JONET_ROWS")
ALL = [(program, target) for program in programs.programs() for target in targets.NAMES if target != targets.HERE]


@pytest.fixture(scope="module")
def written() -> dict[tuple[str, str], dict]:
    """The rows of the file."""
    found = json.loads(Path(ROWS).read_text()) if ROWS else []
    return {(row["program"], row["target"]): row for row in found}


@needs_compilers
@pytest.mark.slow
@pytest.mark.parametrize(("program", "target"), ALL)
def test_every_program_for_every_target(tmp_path, written, program, target):
    """It compiles, fits, and has no more collectives and large copies than are known."""
    if ROWS and (program, target) not in written:
        pytest.skip(f"{ROWS} has no such row")
    rows = written or command(tmp_path, f"--target={target}", f"--programs={program}")
    row = rows[program, target]
    assert "error" not in row, row["error"]
    held = row["arguments"] + row["temporaries"]
    assert not (target == "v5e-1" and program.endswith("/paper/train")) or held < 14e9
    assert not ("/evaluate" in program or "/extract" in program) or held < 1e9
    check_collectives(row)
    check_copies(row)
    if program.endswith("/train") and target.endswith("-1"):
        check_plan(row)


def check_collectives(row: dict) -> None:
    """A step has two sums over the chips, and two collectives for each batch norm, which a TPU may join."""
    one, trains = row["target"].endswith("-1"), table.trains(row)
    most = 0 if one or not trains else 2 + 2 * norms(row["program"])
    found = row["collectives"]
    assert sum(found.values()) <= most, (row["program"], row["target"], found)
    assert not most or found["all-reduce"] >= 2  # or the chips learn apart


def norms(program: str) -> int:
    """How many batch norms the network of a training step has."""
    task, preset, *_ = program.split("/")
    specs = registry.find(task).presets[preset].network
    if not isinstance(specs, occupancy.Specs):
        return 0
    _, statistics = jax.eval_shape(occupancy.OccupancyNetwork(specs).start, jax.random.key(0))
    return len(jax.tree.leaves(statistics)) // 2  # of each a mean and a variance


def check_copies(row: dict) -> None:
    """A copy or transpose is large that moves more than a hundredth of the bytes of its program, and 1 MB."""
    for move in row["moves"]:
        where = f"{row['program']} {row['target']} {move['source']}"
        known = any(re.search(pattern, where) for pattern in KNOWN_COPIES)
        assert known or move["bytes"] < row["bytes"] / 100, (where, move)


KNOWN_COPIES = {  # by program, target and operation of JAX, with the reason; others are a change for the worse
    "^deepsdf/.* v.e.*/concatenate$": "the rows that a step draws, gathered with their four numbers first",
    "^deepsdf/paper/step/.*/whole v5e.*/lin8/": "between two layouts of a gradient; micro-batches avoid them",
    "^deepsdf/8x512/(evaluate/high(est)?|extract/blocks) v5e": "activations of two layers; one pass has none",
    "^deepsdf/.*/adam/.* v.e.*/dot_general$": "activations of the rows of a step, for the backward pass",
    "^onet_points/paper/encode": "maxima over points and products of units want different axes last",
    "^onet_voxels/paper/encode h100.*kernel": "kernels of convolutions in the order of cuDNN",
    "^onet_voxels/paper/train v5e.*/pad$": "the padding of 3-D convolutions, with the shapes last",
    "^onet_voxels/.*/train v6e.*/conv_in/": "grids as bfloat16, for the first convolution",
    "^onet_images/paper/encode v5e": "images and the first layer's output, between layouts of the convolution",
    "^onet_unconditional/paper/train v5e.*/fc_1/": "activations of the last block, for the backward pass",
    "^spline/128": "whole blocks of coefficients of each point, and the 27 of a cell in the least squares",
}
