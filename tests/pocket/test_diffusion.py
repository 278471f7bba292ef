"""The diffusion stage: sizes of the networks, pose maps, a finite loss with gradients everywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from posecrafter.pocket.autoencoder import build
from posecrafter.pocket.data import Figures
from posecrafter.pocket.diffusion import (
    POSE_STYLE,
    DiffusionStage,
    build_controlnet,
    build_denoiser,
    build_unet,
    control_images,
    material_of,
)
from posecrafter.pocket.weights import parameters
from posecrafter.pocket.words import build_text_encoder, build_tokenizer
from posecrafter.pose import draw_frame


@pytest.fixture(scope="module")
def stage():
    random = np.random.default_rng(0)
    xy = random.uniform(0, 128, (12, 130, 2)).astype(np.float32)
    pictures = np.zeros((12, 128, 128, 3), np.uint8)
    figures = Figures(pictures, xy, np.ones((12, 130), np.float32), ["a man with red hair"] * 12)
    tokenizer = build_tokenizer(figures.captions)
    material = material_of(figures, random.standard_normal((12, 16, 16, 16)).astype(np.float16), tokenizer)
    return DiffusionStage(material, build(), tokenizer, 4, torch.device("cpu"))


def test_all_networks_fit_into_24_megabytes_of_half_precision(stage):
    text_encoder = build_text_encoder(build_tokenizer(["a man with red hair"]))
    assert 2 * parameters(build(), build_unet(), build_controlnet(), text_encoder) < 23.5e6


def test_pose_maps_are_the_drawn_poses(stage):
    figures = stage.material.figures
    maps = control_images(figures, np.array([3]), None)
    assert maps.shape == (1, 3, 128, 128)
    drawn = draw_frame(figures.xy[3], figures.score[3], 128, 128, POSE_STYLE)
    assert np.allclose(maps[0].permute(1, 2, 0).numpy() * 255, drawn, atol=1e-3)


@pytest.mark.parametrize("alone", [0.0, 1.0])
def test_the_loss_reaches_every_network(stage, monkeypatch, alone):
    monkeypatch.setattr("posecrafter.pocket.diffusion.ALONE", alone)
    for model in stage.models.values():
        model.zero_grad()
    loss = stage.loss(np.random.default_rng(1), 0.0)
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
    known = torch.from_numpy(stage.material.latents[:1]).float()
    alone = stage._pictures(known)
    assert np.abs(made[:1].astype(int) - alone).max() <= 1
    assert np.abs(made[1:].astype(int) - alone).max() > 1
