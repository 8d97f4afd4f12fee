"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import os
import pathlib
from pathlib import Path

import pytest

from qconvert.errors import OutputError
from qconvert.files import atomic_output, check_writable


def write(path: Path, text: str = "new", *, force: bool = False) -> None:
    with atomic_output(path, force=force) as temporary:
        temporary.write_text(text)


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with atomic_output(path, force=False) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert temporary.name == path.name
        assert temporary.is_relative_to(tmp_path), "on the same disk, so that it can be moved in one step"
    assert path.read_text() == "new"
    assert listing(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("error", [ValueError("boom"), KeyboardInterrupt(), SystemExit(3)])
def test_nothing_is_left_when_the_block_fails(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.bin"
    path.write_text("old")

    def fail() -> None:
        with atomic_output(path, force=True) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert path.read_text() == "old"
    assert listing(tmp_path) == ["a.bin"]


def test_an_existing_file_needs_force(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_text("old")
    with pytest.raises(OutputError, match="exists already") as caught:
        write(path)
    assert "--force" in caught.value.hint
    assert path.read_text() == "old"
    write(path, force=True)
    assert path.read_text() == "new"
    assert listing(tmp_path) == ["a.bin"]


def test_files_written_beside_it_move_along(tmp_path: Path) -> None:
    with atomic_output(tmp_path / "m.onnx", force=False) as temporary:
        temporary.write_text("graph")
        temporary.with_name("m.data").write_text("weights")
    assert listing(tmp_path) == ["m.data", "m.onnx"]
    assert (tmp_path / "m.data").read_text() == "weights"


def test_an_existing_companion_needs_force_too(tmp_path: Path) -> None:
    (tmp_path / "m.data").write_text("other")

    def save(*, force: bool) -> None:
        with atomic_output(tmp_path / "m.onnx", force=force) as temporary:
            temporary.write_text("graph")
            temporary.with_name("m.data").write_text("weights")

    with pytest.raises(OutputError, match=r"m\.data: exists already"):
        save(force=False)
    assert listing(tmp_path) == ["m.data"]
    assert (tmp_path / "m.data").read_text() == "other"
    save(force=True)
    assert (tmp_path / "m.data").read_text() == "weights"
    assert listing(tmp_path) == ["m.data", "m.onnx"]


def test_the_file_that_is_read_is_never_overwritten(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_text("x")
    (tmp_path / "link.onnx").symlink_to(model)
    for path in (model, tmp_path / "link.onnx", tmp_path / "." / "m.onnx"):
        with pytest.raises(OutputError, match="is the model that is read"):
            check_writable(path, force=True, keep=model)
    (tmp_path / "other.onnx").touch()
    check_writable(tmp_path / "other.onnx", force=True, keep=model)
    check_writable(tmp_path / "new.onnx", force=False, keep=model)


def test_new_files_have_the_usual_permissions(tmp_path: Path) -> None:
    write(tmp_path / "a.bin")
    (tmp_path / "b.bin").write_text("plain")
    assert (tmp_path / "a.bin").stat().st_mode == (tmp_path / "b.bin").stat().st_mode


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"the folder '.*none' does not exist"):
        check_writable(tmp_path / "none" / "a.bin", force=False)


def test_a_file_instead_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="does not exist"):
        check_writable(tmp_path / "file" / "a.bin", force=False)


@pytest.mark.parametrize("force", [True, False])
def test_a_folder_instead_of_a_file(tmp_path: Path, force: bool) -> None:
    with pytest.raises(OutputError, match="is a folder"):
        check_writable(tmp_path, force=force)


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="File name too long"):
        write(tmp_path / ("a" * 300))
    assert listing(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="no permission"):
            write(tmp_path / "a.bin")
    finally:
        tmp_path.chmod(0o700)


def test_a_folder_that_the_system_says_is_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK or Path(path) != tmp_path)
    with pytest.raises(OutputError, match="no permission to write in"):
        write(tmp_path / "a.bin")
    assert listing(tmp_path) == []


def test_a_full_disk_leaves_nothing_and_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    path.write_text("old")
    real = pathlib.Path.write_text

    def fill(self: Path, data: str) -> int:
        real(self, data[:1])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pathlib.Path, "write_text", fill)
    with pytest.raises(OutputError, match="No space left on device") as caught:
        write(path, force=True)
    assert str(path) in str(caught.value)
    assert "nothing was written" in caught.value.hint
    assert path.read_text() == "old"
    assert listing(tmp_path) == ["a.bin"]


def test_relative_names_are_relative_to_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("a.bin"))
    assert (tmp_path / "a.bin").read_text() == "new"
