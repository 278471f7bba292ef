"""The method with one part off at a time: what each part is worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from posecrafter.export.reference import reference_session
from posecrafter.export.run import Run
from posecrafter.finetune.base import Base, load_base
from posecrafter.finetune.layers import Attention, Fold
from posecrafter.finetune.person import apply_person
from posecrafter.pose import draw_poses
from posecrafter.progress import silent
from posecrafter.runtime import Request, Session
from posecrafter.runtime.decode import decode
from posecrafter.runtime.edit import edit_latents
from posecrafter.runtime.invert import invert
from posecrafter.runtime.solve import solve

Frames = NDArray[np.uint8]
Change = Callable[[Base], None]
Render = Callable[[Session, Request], Frames]


def _nothing(base: Base) -> None:
    """The network as it is."""


def _render(session: Session, request: Request) -> Frames:
    return session.render(request).frames


def _without_temporal(base: Base) -> None:
    """Take temporal attention out before tuning; a base's own does nothing until it is tuned."""
    for block in base.denoiser.unet.blocks:
        block.attn_temp, block.conv_temp = None, None


def _own_frame(base: Base) -> None:
    """Self-attention within each frame, as in 2-D, in place of key-frame attention."""
    for network in (base.denoiser.unet, base.denoiser.controlnet):
        for block in network.blocks:
            block.attn1.__class__ = _OwnFrameAttention


class _OwnFrameAttention(Attention):
    def key_frame(self, x: Tensor, fold: Fold) -> Tensor:
        return self(x, x)


def _random_reference(session: Session, request: Request) -> Frames:
    frames = session.bundle.manifest.training_frames
    chosen = int(np.random.default_rng(request.seed).integers(frames))
    return session.render(replace(request, reference=chosen)).frames


def _without_insertion(session: Session, request: Request) -> Frames:
    """Sample the targets alone: the first of them is the key frame, and no pass holds the reference."""
    plan, network, bundle = session.plan(request), session._network, session.bundle
    factor, style = bundle.manifest.latents.factor, bundle.manifest.pose_style
    latents = bundle.latents[plan.reference]
    alone = network.encode_poses(draw_poses(plan.reference_pose, style=style))
    up, down = network.engine.upload, network.engine.download
    noise = down(invert(network, latents, alone, 1, bundle.prompt, plan, silent))
    text = np.stack([bundle.empty, bundle.prompt][-len(plan.weights) :])
    frames = []
    for window in plan.windows:
        part = slice(window.start, window.stop)
        every = np.repeat(noise, len(window) + 1, axis=0)
        x = edit_latents(every, plan.motions[part], factor, plan.warp, plan.keep_mean)[1:]
        features = network.encode_poses(draw_poses(plan.poses[part], style=style))
        conditions = network.conditions(text, plan.weights, features, plan.control_scale)
        x = solve(network, up(x), plan.sampling_steps, conditions, "sample", silent)
        frames.append(decode(network, down(x), request.decode_chunk, silent))
    return np.concatenate(frames)


@dataclass(frozen=True)
class Variant:
    """One way to run the method. change: what is done to the network before tuning and before rendering; one that is
    not `_nothing` is tuned anew. request: fields of the request. decoder, person: whether the tuned ones are used."""

    change: Change = _nothing
    request: Mapping[str, Any] | None = None
    render: Render = _render
    decoder: bool = True
    person: bool = True

    @property
    def retuned(self) -> bool:
        return self.change is not _nothing

    def session(self, run: Run) -> Session:
        """A session of this run's network, changed as the variant says, on eager PyTorch."""
        told = run.record["base"]
        if self.decoder and self.person:
            base = run.load()
        else:
            base = load_base(told["source"], told["controlnet"])
            if self.person:
                apply_person(base.denoiser, run.person())
        self.change(base)
        return reference_session(run, base)


FULL = "the method"
VARIANTS: dict[str, Variant] = {
    FULL: Variant(),
    "base untuned": Variant(person=False),
    "no temporal attention": Variant(change=_without_temporal),
    "own-frame attention": Variant(change=_own_frame),
    "reference: frame 0": Variant(request={"reference": 0}),
    "reference: random": Variant(render=_random_reference),
    "plain noise": Variant(request={"inversion": None}),
    "no insertion": Variant(render=_without_insertion),
    "no latent editing": Variant(request={"edit": ()}),
    "editing as published": Variant(request={"keep_mean": False}),
    "inversion as published": Variant(request={"inversion_iterations": 1}),
    "decoder not adapted": Variant(decoder=False),
}
