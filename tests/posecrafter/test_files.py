from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from posecrafter.errors import PoseCrafterError
from posecrafter.files import atomic_folder, atomic_write, disk_errors, read_json, sha256_of, write_json


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_json(target, {"old": 1})
    with pytest.raises(ValueError, match="stop"), atomic_write(target) as temporary:
        temporary.write_text("half")
        raise ValueError("stop")
    assert read_json(target) == {"old": 1}
    assert list(tmp_path.iterdir()) == [target]


def test_a_failed_folder_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with atomic_folder(target) as folder:
        (folder / "x").write_text("first")
    with pytest.raises(KeyboardInterrupt), atomic_folder(target) as folder:
        (folder / "x").write_text("second")
        raise KeyboardInterrupt
    assert (target / "x").read_text() == "first"
    assert list(tmp_path.iterdir()) == [target]


def test_what_is_put_in_place_was_synced_before_and_may_be_read_as_other_files_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[object] = []
    replace, fsync = Path.replace, os.fsync

    def syncing(handle: int) -> None:
        events.append(os.fstat(handle).st_ino)
        fsync(handle)

    def replacing(self: Path, to: Path) -> Path:
        events.append(to)
        return replace(self, to)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(Path, "replace", replacing)
    with atomic_write(tmp_path / "new" / "a.json") as temporary:
        assert (temporary.parent, temporary.suffix) == (tmp_path / "new", ".json")
        temporary.write_text("whole")
    with atomic_folder(tmp_path / "bundle") as folder:
        (folder / "graphs").mkdir()
        (folder / "graphs" / "x").write_text("whole")
    file, inner = tmp_path / "new" / "a.json", tmp_path / "bundle" / "graphs" / "x"
    assert events == [file.stat().st_ino, file, inner.stat().st_ino, tmp_path / "bundle"]
    plain, made = tmp_path / "plain", tmp_path / "made"
    plain.touch()
    made.mkdir()
    assert file.stat().st_mode == plain.stat().st_mode
    assert (tmp_path / "bundle").stat().st_mode == made.stat().st_mode


def test_a_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    for name in ("a", "b"):
        with atomic_folder(target) as folder:
            (folder / name).write_text(name)
    assert [path.name for path in target.iterdir()] == ["b"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_that_cannot_take_the_old_ones_place_leaves_it_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, replace = tmp_path / "bundle", Path.replace
    with atomic_folder(target) as folder:
        (folder / "x").write_text("first")

    def failing(self: Path, to: Path) -> Path:
        if to == target and "-old-" not in str(self):
            raise OSError(errno.EIO, "Input/output error")
        return replace(self, to)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(OSError, match="Input/output"), atomic_folder(target) as folder:
        (folder / "x").write_text("second")
    assert (target / "x").read_text() == "first"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("manager", [atomic_write, atomic_folder])
def test_a_file_in_the_way_of_a_folder_is_named(manager: object, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(PoseCrafterError) as caught, manager(tmp_path / "notes" / "out"):  # type: ignore[operator]
        pass
    assert caught.value.code == "not-writable"
    assert (tmp_path / "notes").read_text() == "mine"


FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    RuntimeError("serialisation failed: No space left on device"),  # libraries have classes of their own
]


@pytest.mark.parametrize("error", FULL)
@pytest.mark.parametrize("manager", [atomic_write, atomic_folder])
def test_a_full_disk_is_named_with_its_cure(manager: object, error: Exception, tmp_path: Path) -> None:
    with pytest.raises(PoseCrafterError) as caught, manager(tmp_path / "out"):  # type: ignore[operator]
        raise error
    assert caught.value.code == "disk-full"
    assert "MiB free" in caught.value.message
    assert list(tmp_path.iterdir()) == []


def test_a_disk_too_full_for_a_folder_is_named_and_an_error_with_a_name_keeps_it(tmp_path: Path) -> None:
    with pytest.raises(PoseCrafterError) as caught, disk_errors(tmp_path / "no" / "such" / "folder"):
        raise FULL[0]
    assert caught.value.code == "disk-full"
    with pytest.raises(PoseCrafterError) as caught, disk_errors(tmp_path):
        raise PoseCrafterError("named", "No space left on device")
    assert caught.value.code == "named"


def test_a_really_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    link = tmp_path / "full"
    with pytest.raises(PoseCrafterError) as caught, atomic_write(tmp_path / "out.bin"):
        link.symlink_to("/dev/full")
        with link.open("wb", buffering=0) as file:
            file.write(b"x")
    assert caught.value.code == "disk-full"
    assert not (tmp_path / "out.bin").exists()


def test_sha256_is_the_standard_one(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc").startswith("ba7816bf8f01cfea414140de5dae2223")


def test_nan_never_reaches_a_json_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["[NaN]", "[-Infinity]", "[1e999]", "[" * 100_000, "{"])
def test_a_file_that_is_no_json_of_finite_numbers_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError):  # noqa: PT011  the words differ
        read_json(tmp_path / "x.json")
