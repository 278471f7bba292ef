"""Picture sheets: rows of frames with a label, to look at."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from posecrafter.files import atomic_write

_LABEL = 150
_GAP = 4


def write_sheet(path: Path, rows: Mapping[str, NDArray[np.uint8]], columns: int = 8, height: int = 128) -> None:
    """Write a PNG with one labelled row per entry, `columns` frames evenly spaced out of each uint8 [F, H, W, 3]."""
    strips = []
    for label, frames in rows.items():
        chosen = frames[np.linspace(0, len(frames) - 1, columns).round().astype(int)]
        width = round(height * chosen.shape[2] / chosen.shape[1])
        cells = [np.full((height, _LABEL, 3), 255, np.uint8)]
        cv2.putText(cells[0], label, (8, height // 2), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
        for frame in chosen:
            larger = frame.shape[0] < height
            scaled = cv2.resize(frame, (width, height), interpolation=cv2.INTER_CUBIC if larger else cv2.INTER_AREA)
            cells += [np.full((height, _GAP, 3), 255, np.uint8), scaled]
        strips += [np.concatenate(cells, axis=1), np.full((_GAP, cells[0].shape[1], 3), 255, np.uint8)[:, :1]]
    wide = max(strip.shape[1] for strip in strips)
    strips = [s if s.shape[1] == wide else np.full((s.shape[0], wide, 3), 255, np.uint8) for s in strips]
    _, png = cv2.imencode(".png", cv2.cvtColor(np.concatenate(strips), cv2.COLOR_RGB2BGR))
    with atomic_write(path) as temporary:
        temporary.write_bytes(png.tobytes())
