import json
import os
import resource
import signal
import stat
import subprocess
import sys

import pytest

from whet import _io
from whet.errors import InputError


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_file_appears_whole_with_its_folders(tmp_path):
    target = tmp_path / "a" / "b" / "x.txt"
    with _io.atomic_path(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
        assert temporary.parent == target.parent
    assert target.read_text() == "new"
    assert names(target.parent) == ["x.txt"]


def test_a_written_file_has_ordinary_permissions(tmp_path):
    old = os.umask(0o022)
    try:
        _io.write_text(tmp_path / "x", "1")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o644


def test_files_of_a_folder_can_be_read_by_whoever_may_list_it(tmp_path):
    old = os.umask(0o022)
    try:
        with _io.atomic_path(tmp_path / "x") as temporary:
            temporary.mkdir()
            (temporary / "weights").write_text("1")
            (temporary / "weights").chmod(0o600)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "x" / "weights").stat().st_mode) == 0o644


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file(tmp_path, error):
    target = tmp_path / "x.txt"
    target.write_text("old")

    def write():
        with _io.atomic_path(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["x.txt"]


def test_a_folder_is_swapped_in_whole(tmp_path):
    target = tmp_path / "model"
    for turn in ("one", "two"):
        with _io.atomic_path(target) as temporary:
            temporary.mkdir()
            (temporary / turn).write_text(turn)
        assert names(target) == [turn]
        assert names(tmp_path) == ["model"]


def test_a_failure_leaves_the_old_folder(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("old")

    def write():
        with _io.atomic_path(target) as temporary:
            temporary.mkdir()
            (temporary / "new").write_text("half")
            raise ValueError

    with pytest.raises(ValueError):
        write()
    assert names(target) == ["old"]
    assert names(tmp_path) == ["model"]


def test_a_swap_whose_second_rename_fails_is_undone(tmp_path, monkeypatch):
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("old")
    replace = os.replace

    def failing(source, destination):
        if str(source).endswith(".tmp"):
            raise OSError(28, "No space left on device")
        replace(source, destination)

    monkeypatch.setattr(os, "replace", failing)
    with (
        pytest.raises(InputError, match=r"cannot write .*model: No space left on device"),
        _io.atomic_path(target) as temporary,
    ):
        temporary.mkdir()
    assert names(target) == ["old"]
    assert names(tmp_path) == ["model"]


def test_a_kill_between_the_two_renames_is_mended(tmp_path):
    target = tmp_path / "model"
    (tmp_path / ".model.old").mkdir()
    (tmp_path / ".model.old" / "old").write_text("old")
    _io.finish_swap(target)
    assert names(target) == ["old"]
    # A left-over beside a whole folder is not taken, and is no obstacle to the next swap.
    (tmp_path / ".model.old").mkdir()
    (tmp_path / ".model.old" / "older").write_text("older")
    _io.finish_swap(target)
    assert names(target) == ["old"]
    with _io.atomic_path(target) as temporary:
        temporary.mkdir()
        (temporary / "new").write_text("new")
    assert names(target) == ["new"]
    assert names(tmp_path) == ["model"]


def test_a_place_that_cannot_be_written_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match=r"cannot write .*file"):
        _io.write_text(tmp_path / "file" / "x.json", "1")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"cannot write .*folder"):
        _io.write_text(tmp_path / "folder", "1")
    assert names(tmp_path) == ["file", "folder"]


def _limit_file_size():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))


@pytest.mark.parametrize(
    "write",
    [
        "_io.write_text(path, 'x' * 5000)",
        "with _io.atomic_path(path) as t: save_file({'a': np.zeros(5000)}, t)",
    ],
)
def test_a_full_disk_is_an_input_error_and_loses_nothing(tmp_path, write):
    """A file-size limit stands in for a full disk."""
    path = tmp_path / "x"
    path.write_text("old")
    code = (
        "import sys\n"
        "from whet import _io\n"
        "from whet.errors import InputError\n"
        "import numpy as np\n"
        "from safetensors.numpy import save_file\n"
        "path = sys.argv[1]\n"
        "try:\n"
        f"    {write}\n"
        "except InputError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        preexec_fn=_limit_file_size,
    )
    assert done.stdout.startswith(f"cannot write {path}: "), done.stderr
    assert "too large" in done.stdout
    assert path.read_text() == "old"
    assert names(tmp_path) == ["x"]


def test_json_is_strict_and_readable(tmp_path):
    path = tmp_path / "x.json"
    _io.write_json(path, {"a": "é", "b": [1, 2.5, None]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "é", "b": [1, 2.5, None]}
    assert path.read_bytes().endswith(b"}\n")
    assert "é" in path.read_text(encoding="utf-8")
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError):
            _io.write_json(path, {"a": bad})
    assert json.loads(path.read_text(encoding="utf-8"))["a"] == "é"
