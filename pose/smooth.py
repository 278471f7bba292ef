"""Smoothing over time, between cuts: the One-Euro filter (Casiez et al. 2012) both ways, or Savitzky-Golay.

A filter that runs forwards lags behind; run backwards as well, and averaged, it does not. Confidence is weight: a point
of score 0.3 moves the result less than one of score 1. Units: frames and image sizes, whatever the canvas.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from posecrafter.errors import PoseError
from posecrafter.pose.groups import GROUPS, Motions, expressions, join, split
from posecrafter.pose.track import PoseTrack

Array = npt.NDArray[np.float64]
Filter = Literal["one-euro", "savgol"]
FILTERS: tuple[Filter, ...] = ("one-euro", "savgol")

# Cutoff of a point at rest in cycles a frame, its growth with speed in image sizes a frame, cutoff of the speed.
REST_CUTOFF = 0.03
SPEED_CUTOFF = 0.1
BETA = 12.0
# Half the window of the local parabola, in frames.
SAVGOL_REACH = 5
# Strength relative to a single point's: whole heads and hands are known well, an expression better than its points, and
# what is left of a point inside its group hardly moves. Tried on rendered people with 2 px of noise at 512.
WHOLE, EXPRESSION, INSIDE = 0.2, 0.05, 2.5


def smooth(track: PoseTrack, cuts: tuple[int, ...] = (), kind: Filter = "one-euro", strength: float = 1.0) -> PoseTrack:
    """The track with its visible points smoothed; what is visible stays so, and no frame looks over a cut.

    cuts: first frames of new shots. strength: 1 suits an estimator's jitter of half a percent of the image; more is
    smoother. Raises PoseError smooth-value.
    """
    if kind not in FILTERS:
        raise PoseError("smooth-value", f"the filter is {kind!r}; choose one of {', '.join(FILTERS)}")
    if not 0 < strength <= 10:
        raise PoseError("smooth-value", f"strength is {strength:g}; it must be above 0 and at most 10")
    size = float(max(track.width, track.height))
    xy = np.where(track.visible[..., None], track.xy, np.nan).astype(np.float64) / size
    trust = np.minimum(np.where(track.visible, track.score, 0), 1).astype(np.float64)
    out = track.xy.copy()
    for first, stop in pairwise((0, *cuts, len(track))):
        smoothed = _shot(xy[first:stop], trust[first:stop], kind, strength)
        seen = np.isfinite(smoothed[..., 0])
        out[first:stop][seen] = size * smoothed[seen]
    return replace(track, xy=out)


def _shot(xy: Array, trust: Array, kind: Filter, strength: float) -> Array:
    """Heads and hands move as wholes and have expressions: both smoothed lightly; what is left of a point, fully."""
    local, motions = split(xy)
    plain = _filtered(xy, trust, kind, strength)
    calm = np.full_like(local, np.nan)
    for points in GROUPS:
        scores, directions = expressions(local[:, points])
        shared = np.einsum("fk,kpd->fpd", scores, directions)
        if scores.shape[1]:
            # A score is spread over the points: per point it is this much smaller.
            track = np.stack([scores, 0 * scores], axis=-1) / np.sqrt(len(points))
            light = _filtered(track, np.ones(scores.shape), kind, EXPRESSION * strength)[..., 0] * np.sqrt(len(points))
        else:
            light = scores
        rest = _filtered(local[:, points] - shared, trust[:, points], kind, INSIDE * strength)
        calm[:, points] = rest + np.einsum("fk,kpd->fpd", light, directions)
    radius = motions.radius[:, None]
    parts = np.stack([motions.shift, motions.turn * radius]).reshape(-1, len(xy)).T
    whole = _filtered(np.stack([parts.real, parts.imag], axis=-1), np.ones(parts.shape), kind, WHOLE * strength)
    shift, turn = (whole[..., 0] + 1j * whole[..., 1]).T.reshape(2, *motions.shift.shape)
    with np.errstate(invalid="ignore", divide="ignore"):
        joined = join(calm, Motions(shift, turn / radius, motions.radius))
    grouped = np.isin(np.arange(xy.shape[1]), np.concatenate(GROUPS))[:, None]
    return np.where(grouped & np.isfinite(joined), joined, plain)


def _filtered(xy: Array, trust: Array, kind: Filter, strength: float) -> Array:
    if kind == "savgol":
        return savgol(xy, trust, max(1, round(SAVGOL_REACH * strength)))
    return (one_euro(xy, trust, strength) + one_euro(xy[::-1], trust[::-1], strength)[::-1]) / 2


def one_euro(xy: Array, trust: Array, strength: float = 1.0) -> Array:
    """The filter forwards over [F, K, 2] in image sizes, NaN where unseen; trust [F, K] in 0..1.

    It starts anew after each gap. Each step closes a share of the way, alpha = 1 / (1 + 1 / (2 pi cutoff)), to the new
    point; the cutoff grows with the speed, and the share shrinks with the trust.
    """
    out = np.full_like(xy, np.nan)
    speed_share = _alpha(np.float64(SPEED_CUTOFF))
    value, velocity = np.full(xy.shape[1:], np.nan), np.zeros(xy.shape[1:])
    for frame, point in enumerate(xy):
        fresh = np.isnan(value[:, 0]) & np.isfinite(point[:, 0])
        value[fresh], velocity[fresh] = point[fresh], 0
        lost = np.isnan(point[:, 0])
        value[lost] = np.nan
        # The speed is that between observations, so that lag does not feed itself.
        before = xy[frame - 1] if frame else point
        step = np.where(np.isfinite(before), point - before, 0)
        velocity += speed_share * (np.where(np.isfinite(step), step, 0) - velocity)
        cutoff = (REST_CUTOFF + BETA * np.linalg.norm(velocity, axis=1)) / strength
        share = np.clip(_alpha(cutoff) * (0.5 + 0.5 * trust[frame]), 0, 1)[:, None]
        value = value + share * (point - value)
        out[frame] = value
    return out


def _alpha(cutoff: Array | np.float64) -> Array:
    return np.asarray(1 / (1 + 1 / (2 * np.pi * cutoff)))


def savgol(xy: Array, trust: Array, reach: int) -> Array:
    """A parabola fitted to the trusted points within `reach` frames of each, [F, K, 2]; NaN stays NaN.

    With equal trust and no gaps this is the Savitzky-Golay filter of order 2; at the ends the window is one-sided.
    """
    frames = len(xy)
    out = np.full_like(xy, np.nan)
    for frame in range(frames):
        low, high = max(0, frame - reach), min(frames, frame + reach + 1)
        offset = np.arange(low, high) - frame
        seen = np.isfinite(xy[low:high, :, 0])
        weight = np.where(seen, trust[low:high], 0) + 0.0
        values = np.nan_to_num(xy[low:high])
        powers = np.stack([np.ones(len(offset)), offset / reach, (offset / reach) ** 2], axis=1)
        left = np.einsum("wk,wa,wb->kab", weight, powers, powers) + 1e-9 * np.eye(3)
        right = np.einsum("wk,wa,wkd->kad", weight, powers, values)
        fitted = np.linalg.solve(left, right)[:, 0]
        enough = seen.sum(axis=0) >= 5
        out[frame] = np.where(enough[:, None], fitted, xy[frame])
    return np.where(np.isfinite(xy), out, np.nan)
