from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posecrafter.bench.native import compare


@pytest.mark.slow
def test_a_comparison_holds_both_sides_and_their_ratio(native: Any, tiny_bundle: Path) -> None:
    record = compare(tiny_bundle, native.build / "bin/posecrafter-host", "onnxruntime", 2, 1, 1, rounds=1)
    for name, ratio in record["ratio"].items():
        assert record["python"][name] > 0
        assert ratio == pytest.approx(record["cpp"][name] / record["python"][name], rel=0.01)
