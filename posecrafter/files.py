"""Files that are either whole or absent: atomic writes, hashes, JSON."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from posecrafter.errors import PoseCrafterError


def _read_umask() -> int:
    """The process's mask, which can only be read by setting it: done once, before there are threads to see it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _read_umask()


@contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Turn "no space left", "not permitted" and "in the way" while writing `target` into errors that say what to do."""
    try:
        yield
    except PoseCrafterError:
        raise
    except Exception as error:
        # Not every library raises OSError for a full disk; safetensors has a class of its own.
        number = error.errno if isinstance(error, OSError) else None
        if number in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(error):
            free = shutil.disk_usage(_existing_parent(target)).free // 2**20
            raise PoseCrafterError(
                "disk-full", f"no space left while writing {target} ({free} MiB free); free some space or choose --out"
            ) from error
        if number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
            raise PoseCrafterError(
                "not-writable", f"cannot write {target}: {os.strerror(number)}; choose another --out"
            ) from error
        raise


def _existing_parent(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


@contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path` (same suffix); when the block ends well, sync it and rename it to `path`.

    When the block fails, the temporary file is removed and whatever was at `path` stays.
    Raises: PoseCrafterError "disk-full", "not-writable".
    """
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            _sync(temporary)
            temporary.chmod(0o666 & ~_UMASK)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; when the block ends well, sync its files and put it in `path`'s place.

    An older folder at `path` is replaced whole. When the block fails, nothing at `path` changes.
    Raises: PoseCrafterError "disk-full", "not-writable".
    """
    path = Path(path).absolute()
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        try:
            yield temporary
            for file in sorted(temporary.rglob("*")):
                if file.is_file():
                    _sync(file)
            temporary.chmod(0o777 & ~_UMASK)
            if path.exists():
                _exchange(temporary, path)
            else:
                temporary.replace(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _exchange(new: Path, path: Path) -> None:
    """Put `new` in the place of what is at `path`; where that fails, what was there stays."""
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}-old-", dir=path.parent))
    try:
        old = path.replace(aside / path.name)
        try:
            new.replace(path)
        except BaseException:
            old.replace(path)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sha256_of(path: Path | str) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON, atomically. Raises: PoseCrafterError "disk-full"; ValueError for NaN."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path | str) -> Any:
    """Parse a JSON file of finite numbers. Raises: OSError; ValueError for what is no such file."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        return json.loads(text, parse_constant=_finite, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _finite(text: str) -> float:
    """JSON knows no NaN and no Infinity, but Python reads both, and 1e999 as the latter."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value
