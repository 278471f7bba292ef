"""What a library found out while it worked, kept beside its plans so that the next process need not: kernels compiled
on first use, timings of a build. It saves time and nothing else, so whatever does not fit is passed over and replaced.

The file is a line of JSON, then the library's bytes. Kernels are native code: a library gets bytes back only where that
line says that they are whole and came from this plan, by this version, on this kind of device.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from posecrafter.errors import PoseCrafterError
from posecrafter.files import atomic_write

FORMAT = "posecrafter-kept-1"


@dataclass(frozen=True)
class Origin:
    """version: of the library. target: the device's. plan: SHA-256 of the plan; empty for what belongs to none."""

    version: str
    target: str
    plan: str = ""


@dataclass(frozen=True)
class Kept:
    """One file and what its bytes must have come from."""

    path: Path
    origin: Origin

    def read(self) -> bytes:
        """The library's bytes; none where the file is absent, damaged, or of another origin."""
        try:
            line, _, data = self.path.read_bytes().partition(b"\n")
            told = json.loads(line)
        except (OSError, ValueError):
            return b""
        return data if told == self._head(data) else b""

    def write(self, data: bytes) -> bool:
        """Write the file, atomically; False where the disk is full or not to be written: nothing is lost but time."""
        try:
            with atomic_write(self.path) as temporary:
                temporary.write_bytes(json.dumps(self._head(data)).encode() + b"\n" + data)
        except PoseCrafterError:
            return False
        return True

    def _head(self, data: bytes) -> dict[str, str]:
        return {"format": FORMAT, **asdict(self.origin), "sha256": hashlib.sha256(data).hexdigest()}
