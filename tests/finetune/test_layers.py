from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from posecrafter.finetune.layers import Fold, PooledGroupNorm, TransformerBlock, attend


@pytest.fixture
def block() -> TransformerBlock:
    torch.manual_seed(2)
    block = TransformerBlock(width=32, heads=2, text_width=24, temporal=True)
    block.start_temporal()
    with torch.no_grad():
        block.conv_temp.weight.normal_(std=0.3)
        block.conv_temp.bias.normal_(std=0.3)
    return block.requires_grad_(False)


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 9, 7), (3, 4, 5), (17, 2, 3)])
def test_pooled_norm_takes_statistics_over_channels_frames_and_positions_jointly(frames, height, width) -> None:
    torch.manual_seed(0)
    norm = PooledGroupNorm(4, 12)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(frames, 12, height, width) * 3 + 1
    stacked = x.transpose(0, 1).reshape(1, 12, frames * height * width)
    expected = F.group_norm(stacked, 4, norm.weight, norm.bias).reshape(12, frames, height, width).transpose(0, 1)
    assert torch.allclose(norm(x, Fold(1, frames)), expected, atol=1e-5)


@pytest.mark.parametrize("outer", [1, 2])
def test_pooled_norm_of_channels_last_is_the_same_and_stays_channels_last(outer, tolerance) -> None:
    torch.manual_seed(3)
    norm, fold = PooledGroupNorm(4, 12), Fold(outer, 3, split=outer > 1)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x, gradient = torch.randn(2, 3 * outer, 12, 5, 7)
    plain, turned = (form.clone().requires_grad_() for form in (x, x.to(memory_format=torch.channels_last)))
    results = [norm(plain, fold), norm(turned, fold)]
    assert results[1].is_contiguous(memory_format=torch.channels_last)
    assert not results[0].is_contiguous(memory_format=torch.channels_last)
    assert (results[0] - results[1]).abs().max() < tolerance["network"]
    for result in results:
        result.backward(gradient)
    assert (plain.grad - turned.grad).abs().max() < tolerance["network"]


def test_pooled_norm_keeps_prompts_apart() -> None:
    torch.manual_seed(0)
    norm, x = PooledGroupNorm(4, 12), torch.randn(6, 12, 3, 3)
    together = norm(x, Fold(2, 3, split=True))
    apart = torch.cat([norm(half, Fold(1, 3)) for half in x.split(3)])
    assert torch.allclose(together, apart, atol=1e-6)


def test_pooled_norm_differs_from_a_norm_of_each_frame() -> None:
    torch.manual_seed(0)
    norm, x = PooledGroupNorm(4, 12), torch.randn(3, 12, 3, 3) * torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1, 1)
    assert not torch.allclose(norm(x, Fold(1, 3)), F.group_norm(x, 4, norm.weight, norm.bias), atol=0.1)


def test_key_frame_attention_reads_keys_and_values_of_frame_0_alone(block) -> None:
    torch.manual_seed(1)
    x = torch.randn(3, 5, 32)
    before = block.attn1.key_frame(x, Fold(1, 3))
    x[2] += 1
    after = block.attn1.key_frame(x, Fold(1, 3))
    assert torch.equal(before[:2], after[:2])
    x[0] += 1
    assert not torch.allclose(block.attn1.key_frame(x, Fold(1, 3))[1], before[1], atol=1e-3)


def test_temporal_attention_at_one_frame_is_a_linear_map(block, tolerance) -> None:
    x = torch.randn(1, 6, 32)
    temporal = block.attn_temp
    linear = temporal.to_out[0](temporal.to_v(x))
    assert torch.allclose(temporal.temporal(x, Fold(1, 1)), linear, atol=tolerance["network"])
    expected = F.linear(linear, block.conv_temp.weight.flatten(1), block.conv_temp.bias)
    assert torch.allclose(block._across_time(x, Fold(1, 1)), expected, atol=tolerance["network"])


def test_temporal_attention_keeps_positions_apart(block) -> None:
    x = torch.randn(3, 6, 32)
    before = block.attn_temp.temporal(x, Fold(1, 3))
    x[:, 4] += 1
    changed = (block.attn_temp.temporal(x, Fold(1, 3)) - before).abs().amax(dim=(0, 2)) > 1e-6
    assert changed.tolist() == [False, False, False, False, True, False]


def test_a_fresh_temporal_branch_adds_nothing() -> None:
    block = TransformerBlock(width=32, heads=2, text_width=24, temporal=True)
    block.start_temporal()
    plain = TransformerBlock(width=32, heads=2, text_width=24, temporal=False)
    plain.load_state_dict({k: v for k, v in block.state_dict().items() if "_temp" not in k})
    x, text = torch.randn(3, 6, 32), torch.randn(1, 4, 24)
    assert torch.equal(block(x, text, Fold(1, 3)), plain(x, text, Fold(1, 3)))
    assert torch.equal(block.attn_temp.to_q.weight, block.attn1.to_q.weight)


def test_folding_conv_temp_into_the_projection_changes_only_rounding(block, tolerance) -> None:
    x, text = torch.randn(3, 6, 32), torch.randn(1, 4, 24)
    before = block(x, text, Fold(1, 3))
    block.fold_temporal()
    assert block.conv_temp is None
    assert torch.allclose(block(x, text, Fold(1, 3)), before, atol=tolerance["merge"])


def test_bf16_attention_in_training_is_computed_in_fp32() -> None:
    q, k, v = (torch.randn(2, 5, 8).bfloat16() for _ in range(3))
    exact = attend(q.float(), k.float(), v.float(), heads=2).bfloat16()
    trained = attend(q.requires_grad_(), k, v, heads=2)
    assert trained.dtype == torch.bfloat16
    assert torch.equal(trained, exact)
