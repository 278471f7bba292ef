"""The diffusion stage: sizes of the networks, pose maps, a finite loss with gradients everywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from posecrafter.pocket.autoencoder import build
from posecrafter.pocket.data import MOMENTS, POSE_STYLE, Figures, pose_maps
from posecrafter.pocket.diffusion import (
    SAMPLES,
    DiffusionStage,
    build_controlnet,
    build_denoiser,
    build_unet,
    control_images,
    material_of,
)
from posecrafter.pocket.weights import parameters
from posecrafter.pocket.words import build_text_encoder, build_tokenizer
from posecrafter.pose import LEFT_HAND, RIGHT_HAND, draw_frame


@pytest.fixture(scope="module")
def stage():
    random, cpu, tokenizer = np.random.default_rng(0), torch.device("cpu"), build_tokenizer(["a man with red hair"])
    materials = []
    for size in (128, 256):
        xy, score = random.uniform(0, size, (12, 130, 2)).astype(np.float32), np.ones((12, 130), np.float32)
        maps = np.stack([pose_maps(*pose, size) for pose in zip(xy, score, strict=True)])
        pictures = np.zeros((12, size, size, 3), np.uint8)
        figures = Figures(pictures, maps, xy, score, ["a man with red hair"] * 12)
        latents = random.standard_normal((12, 16, size // 8, size // 8)).astype(np.float16)
        materials.append(material_of(figures, latents, tokenizer, cpu))
    return DiffusionStage(materials, build(), tokenizer, 16, cpu)


def test_all_networks_fit_into_24_megabytes_of_half_precision(stage):
    text_encoder = build_text_encoder(build_tokenizer(["a man with red hair"]))
    assert 2 * parameters(build(), build_unet(), build_controlnet(), text_encoder) < 23.5e6


def test_pose_maps_are_the_drawn_poses_with_and_without_hands():
    random = np.random.default_rng(3)
    xy, score = random.uniform(0, 128, (130, 2)).astype(np.float32), np.ones(130, np.float32)
    whole, handless = pose_maps(xy, score, 128)
    assert np.array_equal(whole, draw_frame(xy, score, 128, 128, POSE_STYLE))
    score[LEFT_HAND], score[RIGHT_HAND] = 0, 0
    assert np.array_equal(handless, draw_frame(xy, score, 128, 128, POSE_STYLE))
    assert not np.array_equal(whole, handless)
    assert np.allclose(control_images(torch.from_numpy(whole)[None])[0].permute(1, 2, 0) * 255, whole, atol=1e-3)


def test_passes_hold_equally_many_pixels_of_either_size_and_one_person_a_clip(stage):
    random, kinds = np.random.default_rng(2), {}
    for _ in range(300):
        drawn = stage.draw(random, 0.0)
        kinds[drawn.kind] = kinds.get(drawn.kind, 0) + 1
        size, frames = drawn.kind
        assert len(drawn.tensors["chosen"]) == 16 * 128**2 // size**2
        assert drawn.tensors["chosen"].max() < 12 - SAMPLES
        people = (drawn.tensors["chosen"] // MOMENTS).unflatten(0, (-1, frames))
        assert (people == people[:, :1]).all()
        assert len(drawn.tensors["timesteps"]) == len(people)
    assert set(kinds) == {(128, 1), (128, 4), (256, 1), (256, 4)}
    assert 0.08 < (kinds[256, 1] + kinds[256, 4]) / 300 < 0.22


def test_what_a_pass_leaves_out_is_not_seen(stage):
    torch.manual_seed(5)
    with torch.no_grad():  # a fresh ControlNet adds nothing
        for weight in stage.denoiser.controlnet.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.02)
    drawn = stage.draw(np.random.default_rng(1), 0.0)

    def loss(**changed):
        torch.manual_seed(0)
        with torch.no_grad():
            return float(stage.loss(drawn.kind, **{**drawn.tensors, **changed}))

    nothing, shown = torch.zeros_like(drawn.tensors["posed"]), torch.ones_like(drawn.tensors["posed"])
    hands = [torch.full_like(drawn.tensors["handless"], value) for value in (0, 1)]
    assert loss(posed=nothing, handless=hands[0]) == loss(posed=nothing, handless=hands[1])
    assert loss(posed=shown, handless=hands[0]) != loss(posed=shown, handless=hands[1])
    wordless = torch.ones_like(drawn.tensors["wordless"])
    assert loss(wordless=wordless) != loss(wordless=~wordless)


@pytest.mark.parametrize(("alone", "larger"), [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)])
def test_the_loss_reaches_every_network(stage, monkeypatch, alone, larger):
    monkeypatch.setattr("posecrafter.pocket.diffusion.ALONE", alone)
    monkeypatch.setattr("posecrafter.pocket.diffusion.LARGER", larger)
    for model in stage.models.values():
        model.zero_grad()
    drawn = stage.draw(np.random.default_rng(1), 0.0)
    loss = stage.loss(drawn.kind, **drawn.tensors)
    loss.backward()
    assert torch.isfinite(loss)
    for model in stage.models.values():
        assert any(weight.grad is not None and weight.grad.abs().max() > 0 for weight in model.parameters())


def test_generated_pictures_have_the_figures_size_and_follow_the_seed(stage):
    first, again = (stage.generate(np.array([0, 1]), steps=2, seed=4) for _ in range(2))
    assert first.shape == (2, 128, 128, 3)
    assert np.array_equal(first, again)


def test_one_picture_alone_is_seen_as_the_2d_networks_see_it():
    unet, controlnet = build_unet().eval(), build_controlnet().eval()
    noisy, maps, text = torch.randn(2, 16, 16, 16), torch.rand(2, 3, 128, 128), torch.randn(2, 48, 96)
    timesteps = torch.tensor([900, 40])
    denoiser = build_denoiser(unet, controlnet)
    with torch.no_grad():
        down, middle = controlnet(noisy, timesteps, text, maps, return_dict=False)
        expected = unet(
            noisy, timesteps, text, down_block_additional_residuals=down, mid_block_additional_residual=middle
        ).sample
        features = denoiser.controlnet.controlnet_cond_embedding(maps)
        ours = denoiser(noisy, timesteps, text, features, frames=1)
    assert expected.std() > 0.01
    assert (ours[:, 0] - expected).abs().max() < 1e-5


def test_what_is_trained_are_the_2d_networks_weights(stage):
    assert stage.denoiser.unet.state_dict().keys() == build_unet().state_dict().keys()
    assert stage.denoiser.controlnet.state_dict().keys() == build_controlnet().state_dict().keys()


def test_the_known_moment_of_a_person_stays_as_it_is_and_the_others_are_made(stage):
    chosen = np.arange(4)
    made = stage.follow(chosen, steps=2, seed=4)
    known = stage.materials[128].latents[:1].float()
    alone = stage._pictures(known)
    assert np.abs(made[:1].astype(int) - alone).max() <= 1
    assert np.abs(made[1:].astype(int) - alone).max() > 1
