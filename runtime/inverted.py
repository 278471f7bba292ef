"""Inverted reference frames, kept: a request that is repeated inverts nothing, in this process or in another.

In reference mode the noise depends on the bundle, the frame, the prompt, the schedule and ControlNet's scale, and not
on the targets. An entry is named after the hash of all of these and of the engine, since engines round differently.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from posecrafter.errors import PoseCrafterError
from posecrafter.files import atomic_write
from posecrafter.manifest import Manifest
from posecrafter.runtime.plan import Plan

Floats = NDArray[np.float32]

_REMEMBERED = 8
LIMIT = 64 * 2**20
"""Bytes that a folder of entries may hold; the longest unused go first."""

_REVISION = 4
"""Raised where the same inputs come to invert to other numbers; 4: an iterated step's first guess is extrapolated."""

_INPUTS = ("graphs/pose_encoder", "graphs/denoiser", "person/")


def inversion_key(manifest: Manifest, engine: str, plan: Plan, prompt: Floats) -> str:
    """A hash of everything that reference-mode inversion reads. prompt: float32 [T, D]."""
    weights = sorted((name, entry.sha256) for name, entry in manifest.files.items() if name.startswith(_INPUTS))
    steps = [(step.timestep, step.a, step.b) for step in plan.inversion_steps]
    size, style = (plan.width, plan.height), manifest.pose_style
    asked = (plan.reference, size, steps, plan.inversion_iterations, plan.control_scale)
    told = (_REVISION, engine, weights, *asked, style)
    return hashlib.sha256(repr(told).encode() + np.ascontiguousarray(prompt).tobytes()).hexdigest()


class Inverted:
    """The last few inverted frames in memory and, with a folder, more of them on disk.

    Processes may share a folder: entries appear whole by a rename, and one that vanished or was damaged is a miss.
    """

    def __init__(self, folder: Path | None = None, limit: int = LIMIT) -> None:
        self._folder, self._limit = folder, limit
        self._memory: OrderedDict[str, Floats] = OrderedDict()

    def get(self, key: str, shape: tuple[int, ...]) -> Floats | None:
        """Float32 of `shape`, or None."""
        if key in self._memory:
            self._memory.move_to_end(key)
        elif (stored := self._read(key, shape)) is not None:
            self._remember(key, stored)
        return self._memory.get(key)

    def put(self, key: str, latents: Floats) -> None:
        """Keep an inverted frame. A folder that cannot be written is no reason to fail: it is left alone."""
        self._remember(key, latents)
        if self._folder is None or latents.nbytes > self._limit:
            return
        try:
            with atomic_write(self._path(key)) as temporary:
                np.save(temporary, latents, allow_pickle=False)
            self._shrink()
        except (PoseCrafterError, OSError):
            return

    def clear(self) -> None:
        """Forget what is in memory; the folder keeps its entries."""
        self._memory.clear()

    def _remember(self, key: str, latents: Floats) -> None:
        self._memory[key] = latents
        if len(self._memory) > _REMEMBERED:
            self._memory.popitem(last=False)

    def _path(self, key: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{key}.npy"

    def _read(self, key: str, shape: tuple[int, ...]) -> Floats | None:
        if self._folder is None:
            return None
        try:
            latents = np.load(self._path(key), allow_pickle=False)
            os.utime(self._path(key))
        except (OSError, ValueError, EOFError):
            return None
        whole = latents.shape == shape and latents.dtype == np.float32 and bool(np.isfinite(latents).all())
        return latents if whole else None

    def _shrink(self) -> None:
        """Remove the longest unused entries until the rest fits."""
        assert self._folder is not None
        found = []
        for path in self._folder.glob("*.npy"):
            try:
                status = path.stat()
            except FileNotFoundError:  # another process was faster
                continue
            found.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self._limit:
                return
            path.unlink(missing_ok=True)
            total -= size
