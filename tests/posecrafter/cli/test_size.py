from __future__ import annotations

import pytest

from posecrafter.cli.size import parse_size
from posecrafter.errors import RequestError


def test_a_size_is_width_x_height() -> None:
    assert parse_size("--size", "512X320") == (512, 320)
    for text in ("512", "x", "0x5", "-5x5", "5x5x5", "1.5x2", "٣x٤", "9" * 5000 + "x9"):
        with pytest.raises(RequestError, match="--size"):
            parse_size("--size", text)
