"""Words of messages."""

from jonet.wording import counted


def test_what_is_counted_is_in_the_singular_for_one():
    said = [counted(number, "shape") for number in (0, 1, 2, 1000)]
    assert said == ["0 shapes", "1 shape", "2 shapes", "1,000 shapes"]
    assert counted(1, "mesh is", "meshes are") == "1 mesh is" and counted(2, "mesh is", "meshes are") == "2 meshes are"
    assert counted(None, "other shape") == "an unknown number of other shapes"
