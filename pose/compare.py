"""How far two tracks are apart: by part of the body and by frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from posecrafter.errors import PoseError
from posecrafter.framing import Framing
from posecrafter.pose.track import BODY, FACE, LEFT_HAND, RIGHT_HAND, PoseTrack

PARTS = {"body": BODY, "left_hand": LEFT_HAND, "right_hand": RIGHT_HAND, "face": FACE}
WORST = 5


@dataclass(frozen=True)
class Comparison:
    """Distances are means over the points visible in both tracks, in shares of the longer side of A's canvas.

    mean: over everything; largest: of one point. parts: by part, absent where never visible in both. frames [F]: by
    frame, NaN where nothing is shared. worst: the frames furthest apart. only_a, only_b: visible points of one alone.
    """

    mean: float
    largest: float
    parts: dict[str, float]
    frames: npt.NDArray[np.float64]
    worst: tuple[int, ...]
    only_a: int
    only_b: int


def compare_tracks(a: PoseTrack, b: PoseTrack) -> Comparison:
    """Compare two tracks of equal length; b is fitted to a's canvas.

    Raises PoseError poses-length, no-common-key-points.
    """
    if len(a) != len(b):
        raise PoseError("poses-length", f"{len(a)} and {len(b)} frames cannot be compared one by one; cut the longer")
    b = b.framed(Framing.center(b.width, b.height, a.width, a.height))
    both = a.visible & b.visible
    if not both.any():
        raise PoseError("no-common-key-points", "no key point is visible in both tracks; check that both show a person")
    gap = np.linalg.norm(a.xy.astype(np.float64) - b.xy, axis=2) / max(a.width, a.height)
    count = both.sum(axis=1)
    frames = np.where(count > 0, np.where(both, gap, 0).sum(axis=1) / np.maximum(count, 1), np.nan)
    parts = {name: float(gap[:, part][both[:, part]].mean()) for name, part in PARTS.items() if both[:, part].any()}
    order = np.argsort(-np.nan_to_num(frames, nan=-1.0), kind="stable")[:WORST]
    return Comparison(
        mean=float(gap[both].mean()),
        largest=float(gap[both].max()),
        parts=parts,
        frames=frames,
        worst=tuple(int(frame) for frame in order if np.isfinite(frames[frame])),
        only_a=int((a.visible & ~b.visible).sum()),
        only_b=int((b.visible & ~a.visible).sum()),
    )
