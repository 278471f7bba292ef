"""Fixtures of the engines' tests: inputs of a bundle's graphs, and how far two engines may be apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from posecrafter.manifest import Manifest

Inputs = dict[str, np.ndarray]


@pytest.fixture(scope="session")
def graph_inputs(tiny_bundle: Path) -> Callable[..., Inputs]:
    """Random inputs of one of the tiny bundle's graphs. h, w in latent cells."""
    m = Manifest.read(tiny_bundle)

    def make(name: str, frames: int, prompts: int, h: int, w: int) -> Inputs:
        random = np.random.default_rng(frames)
        x = random.standard_normal((frames, m.latents.channels, h, w), np.float32)
        if name == "text_encoder":
            return {"input_ids": random.integers(0, 100, (prompts, m.text.tokens))}
        if name == "pose_encoder":
            return {"control_images": random.random((frames, 3, h * 8, w * 8), np.float32)}
        if name == "vae_decoder":
            return {"latents": x}
        return {
            "x": x,
            "timestep": np.array([501]),
            "a": np.array(1.02, np.float32),
            "b": np.array(-0.13, np.float32),
            "text": random.standard_normal((prompts, m.text.tokens, m.text.width), np.float32),
            "weight": np.linspace(0.5, 1.5, prompts, dtype=np.float32) / prompts,
            "pose_features": random.standard_normal((frames, m.network_width, h, w), np.float32),
            "control_scale": np.array(1.0, np.float32),
        }

    return make


@pytest.fixture(scope="session")
def distance() -> Callable[[np.ndarray, np.ndarray], float]:
    """Relative l2 distance, in float64."""

    def between(found: np.ndarray, expected: np.ndarray) -> float:
        wide = expected.astype(np.float64)
        return float(np.linalg.norm(found.astype(np.float64) - wide) / np.linalg.norm(wide))

    return between


@pytest.fixture(scope="session")
def tolerance() -> dict[str, float]:
    """Relative l2 distances from ONNX Runtime's fp32."""
    return {"fp32": 1e-5, "bf16": 3e-2}
