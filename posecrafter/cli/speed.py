"""What this machine's last runs cost: one small JSON in the user's cache folder, written by generate, read by plan."""

from __future__ import annotations

import json
import os
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posecrafter.errors import PoseCrafterError
from posecrafter.files import write_json

if TYPE_CHECKING:
    from posecrafter.manifest import Manifest
    from posecrafter.runtime import Plan

_KEPT = 50


@dataclass(frozen=True)
class Speed:
    """Seconds per frame evaluation of the network, and per frame of everything else; where and when that was."""

    evaluation: float
    frame: float
    engine: str
    date: str

    def seconds(self, plan: Plan) -> float:
        """What the plan would take."""
        return self.evaluation * plan.evaluations + self.frame * plan.frames


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/posecrafter, by default under ~/.cache; for a user without a home, as in some containers, where
    temporary files are."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "posecrafter"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"posecrafter-{os.getuid()}"


def cache_file() -> Path:
    return cache_folder() / "speed.json"


def measured_folder() -> Path:
    """Where figures of this machine's engines are kept."""
    return cache_folder() / "engines"


def inversions_folder() -> Path:
    """Where inverted frames are kept for the next request."""
    return cache_folder() / "inversions"


def remember(manifest: Manifest, plan: Plan, seconds: dict[str, float], engine: str) -> None:
    """Note what a run cost. A cache that cannot be written is none: the run itself is what counts."""
    network = seconds.get("invert", 0.0) + seconds.get("sample", 0.0)
    rest = sum(seconds.values()) - network
    if not plan.evaluations or not plan.frames:
        return
    entry = Speed(network / plan.evaluations, rest / plan.frames, engine, time.strftime("%Y-%m-%d"))
    known = {name: value for name, value in _read().items() if name != _key(manifest)}
    kept = dict(list(known.items())[-(_KEPT - 1) :]) | {_key(manifest): asdict(entry)}
    with suppress(PoseCrafterError, OSError):
        write_json(cache_file(), kept)


def recall(manifest: Manifest) -> Speed | None:
    """The last run of this network at this size on this machine, or None."""
    try:
        return Speed(**_read()[_key(manifest)])
    except (KeyError, TypeError):
        return None


def _key(manifest: Manifest) -> str:
    """The same network and size: people tuned on one base cost the same."""
    m = manifest
    return f"{m.network_width}-{m.latents.channels}-{m.precision}-{m.defaults.width}x{m.defaults.height}"


def _read() -> dict[str, Any]:
    try:
        found = json.loads(cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
