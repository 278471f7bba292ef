from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from posecrafter.bench.published import PublishedDenoiser
from posecrafter.bench.speed.reference import PublishedLoop, Variant
from posecrafter.export.parity import relative_l2
from posecrafter.export.reference import open_reference
from posecrafter.runtime import Request, Session

torch.set_num_threads(1)
SAME = 1e-4
"""Relative l2 of latents after a whole run: the published loop against the torch engine, fp32."""


@pytest.fixture(scope="module")
def loop(tiny_run: Path) -> PublishedLoop:
    return PublishedLoop.open(tiny_run)


@pytest.fixture(scope="module")
def ours(tiny_run: Path) -> Iterator[Session]:
    with open_reference(tiny_run) as session:
        yield session


@pytest.mark.parametrize(("frames", "h", "w"), [(1, 8, 8), (3, 9, 12), (5, 8, 11)])
def test_one_pass_as_published_equals_the_network_that_is_exported(
    frames: int, h: int, w: int, loop: PublishedLoop
) -> None:
    generator = torch.Generator().manual_seed(frames)
    x = torch.randn(frames, 6, h, w, generator=generator)
    text = torch.randn(2, 16, 32, generator=generator)
    maps = torch.rand(frames, 3, 8 * h, 8 * w, generator=generator)
    denoiser, timestep = loop.base.denoiser, torch.tensor([401])
    with torch.inference_mode():
        features = denoiser.controlnet.controlnet_cond_embedding(maps)
        expected = denoiser(x, timestep, text, features, 0.7)
        clip = x.permute(1, 0, 2, 3)[None]
        found = PublishedDenoiser(denoiser)(
            clip.repeat(2, 1, 1, 1, 1), timestep, text, maps.permute(1, 0, 2, 3)[None], 0.7
        )
    assert relative_l2(found.permute(0, 2, 1, 3, 4).numpy(), expected.numpy()) < SAME / 10


@pytest.mark.parametrize("inversion", ["target", "reference"])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_the_published_loop_ends_at_the_latents_of_our_torch_engine(
    inversion: Any, guidance: float, loop: PublishedLoop, ours: Session
) -> None:
    request = Request(poses=ours.bundle.poses[[4, 0, 1]], steps=4, guidance=guidance, inversion=inversion)
    plan = ours.plan(request)
    with torch.inference_mode():
        maps = loop.maps(plan)
        text = loop.base.encode_text(["", "a person"][-len(plan.weights) :])
        x = loop.edit(plan, loop.invert(plan, maps, text[-1:]))
        found = loop.sample(plan, x, maps, text)[0].permute(1, 0, 2, 3).numpy()
    expected = our_latents(ours, request)
    assert relative_l2(found, expected) < SAME


def our_latents(session: Session, request: Request) -> np.ndarray:
    """What `Session.render` decodes, the reference's frame included."""
    seen = []
    network = session._network

    class Spy:
        def __getattr__(self, name: str) -> Any:
            return getattr(network, name)

        def step(self, *arguments: Any) -> Any:
            seen.append(network.step(*arguments))
            return seen[-1]

    session._network = Spy()  # type: ignore[assignment]
    try:
        session.render(request)
    finally:
        session._network = network
    return session.engine.download(seen[-1])


@pytest.mark.parametrize("inversion", ["target", "reference"])
def test_its_frames_are_ours(inversion: Any, loop: PublishedLoop, ours: Session) -> None:
    request = Request(poses=ours.bundle.poses[[3, 5, 0, 2, 1]], steps=3, inversion=inversion)
    found, expected = loop.render(request), ours.render(request)
    assert np.abs(found.frames.astype(int) - expected.frames).max() <= 1
    assert found.seconds.keys() == expected.seconds.keys()


@pytest.mark.parametrize("variant", [Variant(channels_last=True), Variant(full_attention=True)])
def test_a_variant_in_fp32_changes_rounding_only(
    variant: Variant, tiny_run: Path, loop: PublishedLoop, ours: Session
) -> None:
    request = Request(poses=ours.bundle.poses[[3, 5]], steps=2, inversion="target")
    other = PublishedLoop.open(tiny_run, variant)
    assert np.abs(other.render(request).frames.astype(int) - loop.render(request).frames).max() <= 1
