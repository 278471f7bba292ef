from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from posecrafter.errors import PoseCrafterError, TrainingError
from posecrafter.finetune.data import (
    draw_noise,
    draw_window,
    frame_clip,
    prepare_clip,
)
from posecrafter.finetune.objective import leaked, signal_leak, timestep_weights
from posecrafter.pose import PoseTrack, draw_poses
from posecrafter.schedule import Schedule
from posecrafter.video import Video


@pytest.mark.parametrize("frames", [2, 3, 7, 8, 9, 17, 100])
def test_a_window_is_a_key_frame_and_then_frames_at_one_stride(frames) -> None:
    keys, strides = set(), set()
    for step in range(300):
        key, *others = draw_window(frames, 8, seed=3, step=step)
        assert len(others) == min(7, frames)
        assert all(0 <= index < frames for index in (key, *others))
        gaps = set(np.diff(others).tolist())
        assert len(gaps) == 1
        keys.add(key)
        strides |= gaps
    assert len(keys) > 0.9 * frames
    assert strides == set(range(1, max(1, (frames - 1) // (min(7, frames) - 1)) + 1))


def test_windows_reach_every_frame_of_the_clip() -> None:
    assert {index for step in range(300) for index in draw_window(40, 8, 0, step)[1:]} == set(range(40))


def test_a_steps_draw_depends_on_seed_and_step_alone() -> None:
    assert draw_window(50, 8, 1, 9) == draw_window(50, 8, 1, 9)
    assert draw_window(50, 8, 1, 9) != draw_window(50, 8, 2, 9)
    first, again, later = (draw_noise((4, 6), 1000, 1, step) for step in (9, 9, 10))
    assert first[0] == again[0]
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], later[1])


def test_timesteps_cover_the_schedule_and_noise_is_standard_normal() -> None:
    draws = [draw_noise((64,), 10, 0, step) for step in range(400)]
    assert {timestep for timestep, _ in draws} == set(range(10))
    noise = torch.cat([noise for _, noise in draws])
    assert abs(float(noise.mean())) < 0.02
    assert abs(float(noise.std()) - 1) < 0.02


def test_a_clip_is_encoded_once_frame_by_frame(base, clip, tolerance) -> None:
    frames, poses = frame_clip(*clip, 64, 64)
    ready = prepare_clip(frames, poses, "a disc", base)
    assert ready.latents.shape == (12, 6, 8, 8)
    assert ready.pose_features.shape == (12, 32, 8, 8)
    assert ready.text.shape == (1, 16, 32)
    # Frame 9 is in the second chunk.
    assert torch.allclose(ready.latents[9:10], base.encode_frames(torch.from_numpy(frames[9:10])), atol=1e-4)
    image = torch.from_numpy(draw_poses(poses[9], style="v1.1")).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        expected = base.denoiser.controlnet.controlnet_cond_embedding(image)
    assert (ready.pose_features[9:10] - expected).abs().max() < tolerance["network"]


def test_the_latents_are_the_posteriors_mode_times_the_scaling_factor(base, clip) -> None:
    frames, _ = frame_clip(*clip, 64, 64)
    pixels = torch.from_numpy(frames[:1]).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        expected = base.vae.encode(pixels).latent_dist.mean * base.vae.config["scaling_factor"]
    assert torch.allclose(base.encode_frames(torch.from_numpy(frames[:1])), expected, atol=1e-5)


def test_frames_and_poses_go_through_the_same_framing(clip) -> None:
    video, poses = clip
    frames, framed = frame_clip(video, poses, 64, 64)
    assert frames.shape == (12, 64, 64, 3)
    # The neck is the disc's centre: its colour is there before and after.
    x, y = framed.xy[5, 1]
    assert np.abs(frames[5, int(y), int(x)].astype(int) - (220, 180, 40)).max() < 12


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ("one frame", "too-few-frames", "2 frames.* 1"),
        ("fewer poses", "poses-count", "11 .*12"),
        ("other canvas", "poses-canvas", "50x72.*96x72"),
        ("nobody", "no-person", "12"),
    ],
)
def test_a_clip_that_cannot_be_trained_on_is_refused_with_the_numbers(clip, change, code, words) -> None:
    video, poses = clip
    if change == "one frame":
        video, poses = Video(video.frames[:1], 25.0), poses[:1]
    elif change == "fewer poses":
        poses = poses[:11]
    elif change == "other canvas":
        poses = replace(poses, width=50)
    else:
        poses = PoseTrack.empty(12, 96, 72)
    with pytest.raises(PoseCrafterError, match=words) as caught:
        frame_clip(video, poses, 64, 64)
    assert caught.value.code == code


def test_stopping_while_encoding_says_that_nothing_was_written(base, clip) -> None:
    frames, poses = frame_clip(*clip, 64, 64)
    with pytest.raises(TrainingError, match="nothing was written") as caught:
        prepare_clip(frames, poses, "", base, cancel=lambda: True)
    assert caught.value.code == "cancelled"


def test_velocity_weights_favour_noise_up_to_a_limit_and_are_one_in_the_mean() -> None:
    levels = np.linspace(0.99, 0.001, 1000)
    weights = timestep_weights(levels, "velocity")
    assert weights.mean() == pytest.approx(1)
    assert weights[1] / weights[0] == pytest.approx(levels[0] / levels[1])
    assert weights.max() / weights.min() == pytest.approx(20 * levels[0])
    assert (timestep_weights(levels, "uniform") == 1).all()


def test_where_sampling_begins_the_key_frame_shows_in_every_frame_and_the_path_from_there_ends_at_each() -> None:
    schedule = Schedule()
    clean = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0)).double()
    noise = torch.randn(2, 1, 4, 5, 5, generator=torch.Generator().manual_seed(1)).double().expand_as(clean)
    steps = schedule.sampling(25)
    first = steps[0].timestep
    eps = leaked(noise, clean, signal_leak(schedule.alphas_cumprod, first))
    level = float(schedule.alphas_cumprod[first])
    x = level**0.5 * clean + (1 - level) ** 0.5 * eps
    torch.testing.assert_close(x, x[:, :1].expand_as(x))
    for step in steps:
        x = step.a * x + step.b * eps
    last = float(schedule.alphas_cumprod[0])
    torch.testing.assert_close(x, last**0.5 * clean + (1 - last) ** 0.5 * eps)
