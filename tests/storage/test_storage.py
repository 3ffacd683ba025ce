"""Storage: old or new, whole, and nothing else touched, at every change of the disk; locks; identity; names."""

import ast
import errno
import json
import os
import signal
import string
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import crash
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import ROOT

from jonet.errors import BusyError, ConfigError, StorageError
from jonet.storage import atomic, identity, locks, names

ERRORS = [None, errno.ENOSPC, errno.EACCES]


def tree(folder: Path) -> dict[str, bytes]:
    """The files below a folder, but for unfinished ones."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(map(atomic.is_temporary, [path, *path.parents]))
    }


@pytest.mark.parametrize("error", ERRORS)
def test_a_file_is_old_or_new_at_every_change(tmp_path, error):
    path = tmp_path / "deep" / "file"

    def prepare():
        atomic.write_bytes(path, b"old")

    seen = set()
    for _ in crash.each(tmp_path, prepare, lambda: atomic.write_bytes(path, b"new"), error):
        found = tree(tmp_path)
        assert found.keys() == {"deep/file"}
        seen.add(found["deep/file"])
        if error:
            assert not [p for p in path.parent.iterdir() if atomic.is_temporary(p)]
    assert b"old" in seen and path.read_bytes() == b"new"


@pytest.mark.parametrize("error", ERRORS)
def test_a_folder_is_there_whole_or_not_at_all(tmp_path, error):
    def work():
        with atomic.new_folder(tmp_path / "made") as folder:
            (folder / "a").write_bytes(b"a")
            (folder / "b").mkdir()
            (folder / "b" / "c").write_bytes(b"c")

    (tmp_path / "mine").write_bytes(b"mine")
    count = 0
    for _ in crash.each(tmp_path, lambda: None, work, error):
        assert tree(tmp_path) == {"mine": b"mine"}
        atomic.sweep(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["mine"]
        count += 1
    assert count > 4 and tree(tmp_path / "made") == {"a": b"a", "b/c": b"c"}
    with pytest.raises(StorageError, match="not empty"):
        work()


def test_links_stay_links(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    atomic.write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"


def test_only_known_files_are_removed(tmp_path):
    for name in ("a.npz", "parts/b.npz", "parts/thesis.tex", "empty/c.npz"):
        atomic.write_bytes(tmp_path / name, b"x")
    (tmp_path / "away").mkdir()
    (tmp_path / "elsewhere").symlink_to(tmp_path / "away")
    atomic.write_bytes(tmp_path / "away" / "kept", b"x")
    left = atomic.remove_known(tmp_path, lambda name: name.endswith(".npz"))
    assert left == ["away/kept", "elsewhere", "parts/thesis.tex"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["away", "elsewhere", "parts"]


def test_what_is_moved_aside_keeps_everything(tmp_path):
    for i in range(3):
        atomic.write_bytes(tmp_path / "store" / "index", bytes([i]))
        atomic.move_aside(tmp_path / "store", "damaged")
    assert tree(tmp_path) == {
        "store.damaged/index": b"\0",
        "store.damaged-2/index": b"\1",
        "store.damaged-3/index": b"\2",
    }


def test_outputs_are_no_inputs(tmp_path):
    (tmp_path / "scan.ply").write_bytes(b"x")
    os.link(tmp_path / "scan.ply", tmp_path / "hard.ply")
    (tmp_path / "soft").symlink_to(tmp_path)
    for output in ("scan.ply", "hard.ply", "soft/scan.ply", "soft/./scan.ply"):
        with pytest.raises(ConfigError, match="one of the inputs"):
            atomic.check_outputs([tmp_path / output], [tmp_path / "scan.ply"])
    atomic.check_outputs([tmp_path / "other.ply"], [tmp_path / "scan.ply"])


def test_a_lock_names_who_has_it_and_dies_with_it(tmp_path):
    path = tmp_path / "run" / ".lock"
    hold = "from jonet.storage import locks; import time\n"
    hold += f"with locks.locked({str(path)!r}):\n print(1, flush=True); time.sleep(60)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout.readline() == b"1\n"
        with pytest.raises(BusyError, match=f"process {process.pid} on .* works here since"), locks.locked(path):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        with locks.locked(path):
            assert json.loads(path.read_text())["process"] == os.getpid()
    assert not path.exists()


def test_locks_are_shared_and_waited_for(tmp_path):
    path = tmp_path / ".lock"
    with locks.locked(path, shared=True), locks.locked(path, shared=True):
        with pytest.raises(BusyError), locks.locked(path):
            pass
    wait = f"from jonet.storage import locks\nwith locks.locked({str(path)!r}, wait=True): print('got it')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with locks.locked(path):
        process = subprocess.Popen([sys.executable, "-c", wait], stdout=subprocess.PIPE, text=True, env=environment)
        time.sleep(0.5)
        assert process.poll() is None
    assert process.communicate(timeout=60)[0] == "got it\n" and not path.exists()


def test_identity_is_the_content(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"1234")
    stamped = json.loads(json.dumps(identity.stamp(path)))
    reads = []
    digest = identity.digest
    monkeypatch.setattr(identity, "digest", lambda path: reads.append(path) or digest(path))
    assert identity.unchanged(path, stamped) and not reads  # by size and times
    copy = tmp_path / "copy"
    copy.write_bytes(b"1234")
    assert identity.unchanged(copy, stamped) and reads
    os.utime(path, (1, 1))
    assert identity.unchanged(path, stamped)
    fresh = identity.renewed(path, stamped)
    count = len(reads)
    assert identity.unchanged(path, fresh) and len(reads) == count
    path.write_bytes(b"4321")
    os.utime(path, ns=(stamped["modified"], stamped["modified"]))  # of the same size, and as old
    assert not identity.unchanged(path, stamped)
    path.unlink()
    assert not identity.unchanged(path, stamped) and identity.stamp(path) == {} and identity.unchanged(path, {})


ANY = st.text(
    st.characters(categories=["L", "N", "P", "S", "Z", "C", "M"]) | st.sampled_from("/\\.: aA\udc80"), max_size=8
)
HARD = ["con", "CON.txt", "a:b", "a_b", "A", "a", "a/b", "..", "", "é", "e\u0301", "x" * 300, "x" * 301]
WINDOWS = {"con", "prn", "aux", "nul", *(f"{kind}{i}" for kind in ("com", "lpt") for i in range(10))}


@given(st.lists(ANY | ANY.map(lambda text: text * 100) | st.sampled_from(HARD)))
@settings(max_examples=300, deadline=None)
def test_names_are_safe_and_unique(called):
    made = names.unique(called)
    forms = [unicodedata.normalize("NFC", name).casefold() for name in made]
    assert len(set(forms)) == len(made) == len(called)
    for name, form in zip(made, forms, strict=True):
        for part in name.split("/"):
            assert part not in ("", ".", "..") and not set(part) & set('<>:"|?*\\\0\n\r') and part[-1] not in " ."
            assert part.split(".")[0].lower() not in WINDOWS and len(os.fsencode(part)) <= 200
        assert not any(other.startswith(f"{form}/") for other in forms)  # none is a folder of another
    if len(set(called)) == len(called):
        assert names.unique(called[::-1]) == made[::-1]


@given(st.lists(st.text(string.ascii_letters + string.digits + "_-", min_size=1), unique_by=str.lower))
def test_plain_names_stay_as_they_are(given_names):
    if not {name.lower() for name in given_names} & WINDOWS and all(len(name) < 150 for name in given_names):
        assert names.unique(given_names) == given_names


CHANGES = {"rmtree", "move", "replace", "rename", "renames", "remove", "unlink", "rmdir", "truncate", "removedirs"}
WRITES = {"write_text", "write_bytes", "savez", "savez_compressed", "savetxt", "tofile"}
SOURCES = sorted([*ROOT.glob("jonet/**/*.py"), *ROOT.glob("experiments/*.py")])  # the bench has temporary folders


def changes_the_disk(call: ast.Call) -> bool:
    """Whether a call renames, removes or writes files other than by `storage.atomic`."""
    function, first = call.func, call.args[0] if call.args else None
    method = isinstance(function, ast.Attribute)
    name = function.attr if method else getattr(function, "id", "")
    owner = ast.unparse(function.value) if method else ""
    if owner == "atomic":
        return False
    if name in CHANGES and method:
        if owner in ("os", "shutil"):
            return True
        if name == "replace":  # of texts, which takes two, and of dataclasses, which takes names
            return len(call.args) == 1 and owner != "dataclasses"
        return name in ("rename", "unlink", "rmdir")
    if name in WRITES:  # arrays into an open file
        return not (name.startswith("save") and isinstance(first, ast.Name) and first.id in ("file", "out"))
    modes = [a.value for a in [*call.args, *(k.value for k in call.keywords)] if isinstance(a, ast.Constant)]
    return name == "open" and any(isinstance(m, str) and set(m) & set("wax+") and len(m) < 4 for m in modes)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_only_storage_changes_the_disk(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
    if path.parent.name != "storage":
        assert not [f"line {call.lineno}: {ast.unparse(call.func)}" for call in calls if changes_the_disk(call)]


@pytest.mark.parametrize(
    "code, bad",
    [
        ("os.replace(a, b)", True),
        ("path.replace(b)", True),
        ("text.replace('a', 'b')", False),
        ("dataclasses.replace(a, b=1)", False),
        ("state.replace(b=1)", False),
        ("shutil.rmtree(a)", True),
        ("path.unlink()", True),
        ("path.open('wb')", True),
        ("open(path, mode='a')", True),
        ("open(path, 'rb')", False),
        ("path.write_text(a)", True),
        ("atomic.write_text(path, a)", False),
        ("np.savez(path, a=1)", True),
        ("np.savez(file, a=1)", False),
        ("found.remove(1)", False),
    ],
)
def test_what_changes_the_disk_is_seen(code, bad):
    assert changes_the_disk(ast.parse(code).body[0].value) == bad


def test_json_that_others_read_too(tmp_path):
    """The standard knows no NaN and no Infinity: nothing, and a number that is read as infinity."""
    values = {"a": float("nan"), "b": [float("inf"), -float("inf"), 1e300], "NaN": 'Infinity "NaN" \\', "c": {"d": 1}}

    def refuse(constant):
        raise ValueError(f"{constant} is no JSON")

    atomic.write_json(tmp_path / "values.json", values)
    found = json.loads((tmp_path / "values.json").read_text("utf-8"), parse_constant=refuse)
    assert found == values | {"a": None}
    line = atomic.json_text({"x": float("nan")}, separators=(",", ":"))
    assert line == '{"x":null}'
