"""The model of whole jobs, and work without its device."""

import dataclasses
import json

import numpy as np
import pytest
from analytic import ball, field

from experiments.accelerators import jobs
from experiments.accelerators.jobs import Machine, Share
from experiments.bench import playback
from jonet.inference.surfaces import extraction
from jonet.networks.field import Field

pytestmark = pytest.mark.unoptimized
SHARE = Share(chip=1e-3, dispatching=1e-3, reading=4e-3, writing=1e-3, size=1e5)


@pytest.mark.parametrize(
    ("changes", "machine", "rate", "slowest"),
    [
        ({}, Machine(16), 500, "chip"),
        ({"overlapped": True}, Machine(16), 1000, "chip"),
        ({"spread": 0.016}, Machine(16), 1e3 / 3, "chip"),
        ({"chip": 0.0, "overlapped": True}, Machine(16), 1000, "dispatching"),
        ({"reading": 0.16}, Machine(16), 1e3 / 10.125, "cores"),
        ({"writing": 0.08}, Machine(16), 100, "writing"),
        ({}, Machine(1), 1e3 / 6, "cores"),
        ({}, Machine(1, is_cpu=True), 1e3 / 7, "cores"),
        ({}, Machine(16, disk=1e7), 100, "disk"),
    ],
)
def test_a_job_is_as_fast_as_its_slowest_part(changes, machine, rate, slowest):
    found, part = jobs.predicted(dataclasses.replace(SHARE, **changes), machine)
    assert found == pytest.approx(rate) and part == slowest


def test_what_was_measured_is_predicted_and_tabled(tmp_path):
    shares = json.loads(jobs.SHARES.read_text("utf-8"))
    for of_verb in shares.values():
        assert of_verb["predicted"] == pytest.approx(of_verb["measured"], rel=0.15)
    programs = {"gauss_newton/high": 800, "extract/blocks": 2000, "extract/meshes": 3000}
    file = tmp_path / "rows.json"
    rows = [
        {"program": f"deepsdf/6x128/{name}", "target": "h100-1", "rate": r, "milliseconds": 1, "kernels": 4}
        for name, r in programs.items()
    ]
    file.write_text(json.dumps([*rows, rows[0] | {"target": "v6e-1"}, rows[1] | {"target": "h200-1"}]))
    rates = jobs.rows_of(file)
    assert rates["h100-1"]["extract/blocks"] == pytest.approx(2000 / 1.01)
    assert jobs.of_chip("extract", shares["extract"], rates["h100-1"]) == pytest.approx(1.01 / 2000 + 1.01 / 3000)
    lines = jobs.table(shares, rates).splitlines()
    # of another chip, only the job whose programs all have rows
    assert [line.split(" | ")[:2] for line in lines[2:]] == [
        ["| h100-1", "meshes at 128³"],
        ["| h100-1", "codes of samples"],
        ["| v6e-1", "codes of samples"],
    ]


def test_answers_are_played_back_in_the_time_of_the_host():
    fields, meshes = (
        Field.stack([field(ball, center=(0, 0, 0), radius=0.4), field(ball, center=(0, 0, 0), radius=0.5)]),
        [],
    )
    evaluate = playback.field.evaluation

    def work():
        meshes.append(extraction.extract(fields, 12))

    found = playback.host(work, repeats=2)
    assert found.programs > 1 and 0 < found.host < 5 and found.device > 0
    assert playback.field.evaluation is evaluate
    for mesh, played in zip(meshes[0], meshes[-1], strict=True):
        np.testing.assert_array_equal(mesh.vertices, played.vertices)
