"""The benchmark's row of one shape: splines take longer to run without optimizations than to compile with them."""

from experiments.bench import __main__ as bench
from experiments.bench import peers


def test_one_shape_is_represented_as_well_on_both_sides(capsys):
    """Ours alone without PyTorch; with it both are scored on the same points."""
    (row,) = bench.measure(bench.parse(["--rows=represent_shape", "--quick", "--repeats=1"]))
    assert row["ours"] > 0 and row["shapes_per_second"] > 0 and row["iou"]["ours"] > 0.9
    if peers.available():
        assert row["theirs"] > 0 and 0 < row["iou"]["theirs"] <= 1
        assert row["reached"] == (row["iou"]["theirs"] >= row["iou"]["ours"])
