from __future__ import annotations

import pytest
import torch

from posecrafter.errors import BaseModelError
from posecrafter.finetune.network import NetworkSize, VideoControlNet, VideoDenoiser, VideoUNet


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 7)])
def test_one_frame_without_temporal_weights_equals_diffusers_2d_models(
    denoiser, draw, tiny_base, tolerance, height, width
) -> None:
    from diffusers import ControlNetModel, UNet2DConditionModel

    inputs = draw(1, height, width)
    images = torch.rand(1, 3, 8 * height, 8 * width)
    unet = UNet2DConditionModel.from_pretrained(tiny_base / "unet")
    controlnet = ControlNetModel.from_pretrained(tiny_base / "controlnet")
    shared = {"timestep": torch.tensor([501]), "encoder_hidden_states": inputs["text"], "return_dict": False}
    with torch.no_grad():
        down, middle = controlnet(inputs["x"], controlnet_cond=images, conditioning_scale=0.7, **shared)
        expected = unet(
            inputs["x"], down_block_additional_residuals=down, mid_block_additional_residual=middle, **shared
        )[0]
        inputs["pose_features"] = denoiser.controlnet.controlnet_cond_embedding(images)
        ours = denoiser(**inputs, control_scale=0.7)[0]
    assert expected.std() > 0.1
    assert (ours - expected).abs().max() < tolerance["network"]


@pytest.mark.parametrize("frames", [3, 17])
def test_equal_frames_with_equal_poses_give_the_result_of_one_frame(lively, draw, tolerance, frames) -> None:
    one = draw(1)
    many = {**one, "x": one["x"].repeat(frames, 1, 1, 1), "pose_features": one["pose_features"].repeat(frames, 1, 1, 1)}
    with torch.no_grad():
        assert (lively(**many) - lively(**one)).abs().max() < tolerance["network"]


def test_permuting_the_frames_behind_the_key_frame_permutes_the_output(lively, draw, tolerance) -> None:
    inputs, order = draw(5, height=9), [0, 3, 1, 4, 2]
    shuffled = {**inputs, "x": inputs["x"][order], "pose_features": inputs["pose_features"][order]}
    with torch.no_grad():
        straight, permuted = lively(**inputs), lively(**shuffled)
    assert (straight[:, order] - permuted).abs().max() < tolerance["network"]
    assert (straight - permuted).abs().max() > 0.01


def test_another_key_frame_gives_another_output(lively, draw) -> None:
    inputs, order = draw(3), [1, 0, 2]
    shuffled = {**inputs, "x": inputs["x"][order], "pose_features": inputs["pose_features"][order]}
    with torch.no_grad():
        assert (lively(**inputs)[:, order] - lively(**shuffled)).abs().max() > 1e-3


def test_prompts_in_one_pass_equal_prompts_one_by_one(lively, draw, tolerance) -> None:
    inputs = draw(3, height=9, prompts=3)
    with torch.no_grad():
        together = lively(**inputs)
        apart = torch.cat([lively(**{**inputs, "text": text[None]}) for text in inputs["text"]])
    assert together.shape == (3, 3, 6, 9, 8)
    assert (together - apart).abs().max() < tolerance["network"]
    assert (apart[0] - apart[1]).abs().max() > 1e-3


def test_prompts_share_one_pass_also_where_the_first_level_has_no_attention(make_tiny_base, tmp_path, draw) -> None:
    from posecrafter.finetune.base import load_base

    kinds = ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
    denoiser = load_base(make_tiny_base(tmp_path / "base", down_block_types=kinds)).denoiser
    inputs = draw(2, prompts=2)
    with torch.no_grad():
        apart = torch.cat([denoiser(**{**inputs, "text": text[None]}) for text in inputs["text"]])
        assert (denoiser(**inputs) - apart).abs().max() < 1e-5


def test_folding_the_temporal_weights_changes_only_rounding(lively, draw, tolerance) -> None:
    inputs = draw(3)
    with torch.no_grad():
        before = lively(**inputs)
        lively.unet.fold_temporal()
        assert not any("conv_temp" in name for name in lively.state_dict())
        assert (lively(**inputs) - before).abs().max() < tolerance["merge"]


def test_poses_matter_and_control_scale_0_silences_them(denoiser, draw) -> None:
    inputs = draw(2)
    other = {**inputs, "pose_features": inputs["pose_features"].flip(0) + 1}
    with torch.no_grad():
        assert (denoiser(**inputs) - denoiser(**other)).abs().max() > 0.01
        silent, unposed = denoiser(**other, control_scale=0.0), denoiser(**inputs, control_scale=0.0)
        assert torch.equal(silent, unposed)


def test_gradient_checkpointing_changes_no_gradient(lively, draw) -> None:
    def gradients() -> list[torch.Tensor]:
        lively.zero_grad()
        lively(**draw(3)).square().mean().backward()
        return [weight.grad.clone() for weight in lively.parameters() if weight.grad is not None]

    lively.requires_grad_(True)
    plain = gradients()
    for network in (lively.unet, lively.controlnet):
        network.gradient_checkpointing = True
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients(), strict=True))


def test_a_controlvideo_checkpoint_loads_by_name(lively, sd15) -> None:
    state = {name: tensor.clone() for name, tensor in lively.unet.state_dict().items()}
    assert sum(".attn_temp." in name or ".conv_temp." in name for name in state) == 6 * 7
    fresh = VideoUNet(lively.unet.size, out_channels=6)
    fresh.load_base(state)
    assert all(torch.equal(fresh.state_dict()[name], tensor) for name, tensor in state.items())


def test_controlvideos_3d_block_names_mean_the_same_network(sd15) -> None:
    renamed = [kind.replace("2D", "3D") for kind in sd15["unet"]["down_block_types"]]
    size = NetworkSize.from_config({**sd15["unet"], "down_block_types": renamed})
    assert size == NetworkSize.from_config(sd15["unet"])


def test_a_2d_checkpoint_starts_temporal_attention_as_a_copy_behind_zeros(denoiser) -> None:
    for block in denoiser.unet.blocks:
        if block.attn_temp is not None:
            assert torch.equal(block.attn_temp.to_v.weight, block.attn1.to_v.weight)
            assert not block.conv_temp.weight.any()
    without = [block for block in denoiser.unet.blocks if block.attn_temp is None]
    assert len(without) == len(denoiser.unet.mid_block.attentions[0].transformer_blocks) == 1
    assert all(block.attn_temp is None for block in denoiser.controlnet.blocks)


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "half of the temporal weights"])
def test_a_checkpoint_that_does_not_fit_is_refused_with_the_tensors_name(denoiser, change) -> None:
    state = dict(denoiser.unet.state_dict())
    name = "conv_out.weight"
    if change == "missing":
        del state[name]
    elif change == "extra":
        name = "conv_out.scale"
        state[name] = torch.zeros(1)
    elif change == "shape":
        state[name] = state[name][:1]
    else:
        name = next(key for key in sorted(state) if ".attn_temp." in key)
        del state[name]
    with pytest.raises(BaseModelError, match=name.replace(".", r"\.")) as caught:
        denoiser.unet.load_base(state)
    assert caught.value.code == "base-component-missing"


@pytest.mark.parametrize(
    "change",
    [
        {"addition_embed_type": "text_time"},
        {"act_fn": "gelu"},
        {"down_block_types": ["AttnDownBlock2D"] * 4},
        {"cross_attention_dim": [768] * 4},
    ],
)
def test_a_network_of_another_family_is_refused(sd15, change) -> None:
    with pytest.raises(BaseModelError) as caught:
        NetworkSize.from_config({**sd15["unet"], **change})
    assert caught.value.code == "base-unsupported"


def test_sd15_has_15_temporal_blocks_and_its_public_parameter_counts(sd15) -> None:
    with torch.device("meta"):
        unet, controlnet = VideoUNet.from_config(sd15["unet"]), VideoControlNet.from_config(sd15["controlnet"])
    sizes = {name: weight.numel() for name, weight in VideoDenoiser(unet, controlnet).named_parameters()}
    temporal = {name for name in sizes if "_temp." in name}
    assert sum(block.attn_temp is not None for block in unet.blocks) == 15
    assert sum(n for name, n in sizes.items() if name.startswith("unet.") and name not in temporal) == 859_520_964
    assert sum(n for name, n in sizes.items() if name.startswith("controlnet.")) == 361_279_120


def test_clips_in_one_pass_equal_clips_one_by_one(lively, draw, tolerance) -> None:
    clips, timesteps = [draw(3, height=9), draw(3, height=9)], torch.tensor([801, 21])
    clips[1] = {**clips[1], "x": clips[1]["x"].flip(0), "pose_features": clips[1]["pose_features"].flip(0)}
    joined = {name: torch.cat([clip[name] for clip in clips]) for name in ("x", "text", "pose_features")}
    with torch.no_grad():
        together = lively(**joined, timestep=timesteps, frames=3)
        apart = [lively(**{**clip, "timestep": t[None]}) for clip, t in zip(clips, timesteps, strict=True)]
    assert (together - torch.cat(apart)).abs().max() < tolerance["network"]
    assert (together[0] - together[1]).abs().max() > 0.01
