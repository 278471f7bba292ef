from __future__ import annotations

import time

import numpy as np

from posecrafter.runtime.measure import _in_turns


def test_a_step_is_timed_when_the_engine_before_has_gone_to_sleep() -> None:
    left = time.perf_counter()

    def lingers() -> np.ndarray:
        nonlocal left
        left = time.perf_counter()
        return np.zeros(1, np.float32)

    def is_disturbed() -> np.ndarray:
        time.sleep(0.012 if time.perf_counter() - left < 0.03 else 0.001)
        return np.zeros(1, np.float32)

    seconds = _in_turns({("onnxruntime", None): lingers, ("native", None): is_disturbed})
    assert seconds["native", None] < 0.01
