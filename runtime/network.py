"""The graphs of a bundle as functions of the method: encode poses, one solver step, decode, encode text.

Tensors stay in the engine's memory from the first step to the last; what a step reads and does not change is uploaded
once a pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from posecrafter.runtime.engines.base import Buffer, Engine
from posecrafter.schedule import Step

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Conditions:
    """What every step of a pass sees, in the engine's memory.

    text [B, T, D], weight [B], pose_features [F, C0, h, w], control_scale [].
    """

    text: Buffer
    weight: Buffer
    pose_features: Buffer
    control_scale: Buffer


@dataclass(frozen=True)
class Network:
    """An engine that speaks the method's words."""

    engine: Engine

    def encode_poses(self, maps: NDArray[np.uint8]) -> Buffer:
        """Pose maps uint8 [F, H, W, 3] -> pose features [F, C0, h, w]."""
        images = np.ascontiguousarray(maps.transpose(0, 3, 1, 2), dtype=np.float32) / np.float32(255)
        graph = self.engine.load("pose_encoder")
        return graph.run({"control_images": self.engine.upload(images)})["pose_features"]

    def conditions(
        self, text: Floats, weights: Sequence[float], pose_features: Buffer, control_scale: float
    ) -> Conditions:
        """Upload what a pass needs. text: float32 [B, T, D]; weights: B numbers that sum to 1."""
        up = self.engine.upload
        return Conditions(
            up(text),
            up(np.array(weights, dtype=np.float32)),
            pose_features,
            up(np.array(control_scale, dtype=np.float32)),
        )

    def step(self, x: Buffer, step: Step, conditions: Conditions) -> Buffer:
        """x <- a x + b eps(x, t), with eps = sum_b weight_b eps_b. x: [F, L, h, w] in the engine's memory."""
        return self._denoise(x, step, conditions)["x_next"]

    def predict(self, x: Buffer, step: Step, conditions: Conditions) -> Buffer:
        """The eps(x, t) of that step, [F, L, h, w]."""
        return self._denoise(x, step, conditions)["eps"]

    def _denoise(self, x: Buffer, step: Step, conditions: Conditions) -> dict[str, Buffer]:
        up = self.engine.upload
        inputs = {
            "x": x,
            "timestep": up(np.array([step.timestep], dtype=np.int64)),
            "a": up(np.array(step.a, dtype=np.float32)),
            "b": up(np.array(step.b, dtype=np.float32)),
            "text": conditions.text,
            "weight": conditions.weight,
            "pose_features": conditions.pose_features,
            "control_scale": conditions.control_scale,
        }
        return self.engine.load("denoiser").run(inputs)

    def decode(self, latents: Floats) -> NDArray[np.uint8]:
        """Scaled latents float32 [F, L, h, w] -> frames uint8 [F, H, W, 3]."""
        graph = self.engine.load("vae_decoder")
        frames = self.engine.download(graph.run({"latents": self.engine.upload(latents)})["frames"])
        return np.rint(frames).astype(np.uint8)

    def encode_text(self, token_ids: NDArray[np.int64]) -> Floats:
        """Token ids int64 [B, T] -> embeddings float32 [B, T, D]."""
        graph = self.engine.load("text_encoder")
        return self.engine.download(graph.run({"input_ids": self.engine.upload(token_ids)})["text"])
