from __future__ import annotations

import pytest
import torch

from posecrafter.finetune.network import VideoControlNet, VideoDenoiser, VideoUNet
from posecrafter.finetune.trainable import choose_trained, trained_names


@pytest.fixture
def full_size(sd15) -> VideoDenoiser:
    """SD 1.5's denoiser with its real configuration, without memory behind it."""
    with torch.device("meta"):
        return VideoDenoiser(VideoUNet.from_config(sd15["unet"]), VideoControlNet.from_config(sd15["controlnet"]))


def test_the_method_trains_72_1_million_weights_of_sd15(full_size) -> None:
    trained = choose_trained(full_size, "method")
    count = sum(weight.numel() for weight in trained.values())
    assert count == 72_130_240
    assert round(count / 1e6, 1) == 72.1
    assert count == sum(weight.numel() for weight in full_size.parameters() if weight.requires_grad)


def test_the_method_trains_to_out_of_self_attention_and_the_temporal_branch(denoiser) -> None:
    names = trained_names(denoiser, "method")
    kinds = {name.split(".transformer_blocks.0.")[1].split(".")[0] for name in names}
    assert kinds == {"attn1", "attn_temp", "conv_temp"}
    assert all(".to_out.0." in name for name in names if ".attn1." in name)
    assert any(name.startswith("controlnet.") for name in names)


def test_scope_all_trains_everything_but_the_pose_embedding(denoiser) -> None:
    trained = choose_trained(denoiser, "all")
    frozen = {name for name, weight in denoiser.named_parameters() if not weight.requires_grad}
    assert frozen == {name for name, _ in denoiser.named_parameters() if "controlnet_cond_embedding" in name}
    assert trained.keys().isdisjoint(frozen)
    assert len(trained) + len(frozen) == len(list(denoiser.parameters()))


def test_a_lora_trains_updates_of_the_same_matrices_and_conv_temp_in_full(denoiser) -> None:
    full = [name for name in trained_names(denoiser, "method") if name.endswith(".weight") and "conv_temp" not in name]
    trained = choose_trained(denoiser, "method", lora_rank=4)
    updated = {name.removesuffix(".lora_up.weight") for name in trained if name.endswith(".lora_up.weight")}
    assert updated == {name.removesuffix(".weight") for name in full}
    assert {name for name in trained if ".lora_" not in name} == {
        name for name in trained_names(denoiser, "method") if ".conv_temp." in name
    }
    assert all(weight.requires_grad for weight in trained.values())


def test_a_lora_of_rank_16_is_a_thirtieth_of_the_matrices_it_updates(full_size) -> None:
    names = [name for name in trained_names(full_size, "method") if name.endswith(".weight")]
    weights = dict(full_size.named_parameters())
    matrices = sum(weights[name].numel() for name in names if ".conv_temp." not in name)
    trained = choose_trained(full_size, "method", lora_rank=16)
    updates = sum(weight.numel() for name, weight in trained.items() if ".lora_" in name)
    assert updates == 2_017_280
    assert 30 < matrices / updates < 31
