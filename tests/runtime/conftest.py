"""A bundle held in memory and an engine of a few lines of numpy, for tests of the loop without a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posecrafter.manifest import Defaults, Latents, Manifest, Range, Text
from posecrafter.pose import PoseTrack
from posecrafter.runtime import Bundle
from posecrafter.runtime.engines import processor as processor_module
from posecrafter.schedule import Schedule

Eps = Callable[[np.ndarray, int, np.ndarray], np.ndarray]


def wandering_track(frames: int, seed: int = 0, width: int = 64, height: int = 64) -> PoseTrack:
    """A whole person (all 130 points) that moves smoothly."""
    rng = np.random.default_rng(seed)
    xy = rng.uniform(0.2, 0.8, (1, 130, 2)) * (width, height)
    xy = xy + np.cumsum(rng.normal(0, 0.6, (frames, 1, 2)), axis=0)
    return PoseTrack(xy.astype(np.float32), np.ones((frames, 130), np.float32), width, height)


class FakeGraph:
    def __init__(self, engine: FakeEngine, name: str) -> None:
        self.engine, self.name = engine, name

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        self.engine.calls.append((self.name, {name: value.shape for name, value in inputs.items()}))
        if self.name == "pose_encoder":
            images = inputs["control_images"]
            return {"pose_features": images.reshape(*images.shape[:2], 8, 8, 8, 8).mean((3, 5))}
        if self.name == "vae_decoder":
            tone = np.clip(inputs["latents"][:, :3] * 40 + 128, 0, 255)
            return {"frames": tone.transpose(0, 2, 3, 1).repeat(8, axis=1).repeat(8, axis=2)}
        each = [self.engine.eps(inputs["x"], int(inputs["timestep"][0]), text) for text in inputs["text"]]
        eps = sum(weight * e for weight, e in zip(inputs["weight"], each, strict=True))
        return {"x_next": (inputs["a"] * inputs["x"] + inputs["b"] * eps).astype(np.float32), "eps": eps}


class FakeEngine:
    name, device = "fake", "cpu"

    def __init__(self, eps: Eps) -> None:
        self.eps = eps
        self.calls: list[tuple[str, dict[str, tuple[int, ...]]]] = []

    def load(self, graph: str) -> FakeGraph:
        return FakeGraph(self, graph)

    def upload(self, array: np.ndarray) -> np.ndarray:
        return array

    def download(self, buffer: np.ndarray) -> np.ndarray:
        return buffer

    def close(self) -> None:
        self.calls.clear()

    def passes(self) -> list[tuple[int, int]]:
        """(frames, prompts) of every denoiser pass."""
        return [(shapes["x"][0], shapes["text"][0]) for name, shapes in self.calls if name == "denoiser"]


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Path]:
    """Let the processor seem to have these flags; returns the file that tells."""

    def flags(words: str) -> Path:
        path = tmp_path / "cpuinfo"
        path.write_text(f"processor\t: 0\nmodel name\t: flags of amx_bf16\nflags\t\t: fpu avx2 {words}\n\n")
        monkeypatch.setattr(processor_module, "CPUINFO", path)
        return path

    return flags


@pytest.fixture
def engine() -> Callable[[Eps], FakeEngine]:
    return FakeEngine


@pytest.fixture
def memory_bundle() -> Bundle:
    """12 training frames at 64x64, 4 latent channels, at most 33 frames a pass; no folder."""
    manifest = Manifest(
        precision="fp32",
        width=Range(64, 64, 8),
        height=Range(64, 64, 8),
        frames=Range(1, 33),
        prompts=Range(1, 4),
        latents=Latents(channels=4, factor=8, scaling_factor=1.0),
        text=Text(tokens=5, width=6, prompt="a person"),
        schedule=Schedule(),
        defaults=Defaults(width=64, height=64, steps=4, guidance=2.0, control_scale=1.0),
        pose_style="v1.1",
        fps=25.0,
        training_frames=12,
        network_width=32,
    )
    rng = np.random.default_rng(1)
    latents = rng.standard_normal((12, 4, 8, 8)).astype(np.float32)
    prompt, empty = np.full((5, 6), 0.5, np.float32), np.zeros((5, 6), np.float32)
    return Bundle(manifest, wandering_track(12), latents, prompt, empty)
