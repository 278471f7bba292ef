"""Reference selection: the training frame whose pose is nearest to the whole target (METHOD section 3.1)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from posecrafter.errors import PoseError
from posecrafter.pose import PoseTrack


def distances(training: PoseTrack, target: PoseTrack) -> NDArray[np.float64]:
    """dist(q_i, p_j), float64 [N, M]: mean distance over the key points visible in both, as a share of image size.

    Image size is the longer side. NaN where a pair has no visible key point in common. Both tracks lie on one canvas.
    """
    size = float(max(training.width, training.height))
    target_xy, target_seen = target.xy.astype(np.float64), target.visible
    out = np.full((len(training), len(target)), np.nan)
    for i in range(len(training)):
        both = training.visible[i] & target_seen
        gap = np.linalg.norm(target_xy - training.xy[i].astype(np.float64), axis=-1)
        count = both.sum(axis=1)
        total = np.where(both, gap, 0.0).sum(axis=1)
        out[i] = np.where(count > 0, total / np.maximum(count, 1), np.nan) / size
    return out


def select_reference(table: NDArray[np.float64]) -> int:
    """argmin_i mean_j dist(q_i, p_j) over the pairs that can be compared. table: [N, M] of `distances`.

    A training frame that shares key points with fewer target frames than the best one does is not considered: a mean
    over few easy frames says little. Raises: PoseError "no-common-key-points".
    """
    comparable = np.isfinite(table).sum(axis=1)
    if not comparable.any():
        raise PoseError(
            "no-common-key-points",
            "no visible key point is shared by the target and the training frames; check that both show a person",
        )
    means = np.nansum(table, axis=1) / np.maximum(comparable, 1)
    return int(np.argmin(np.where(comparable == comparable.max(), means, np.inf)))
