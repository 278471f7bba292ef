"""The torch operators: what tracers see of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from posecrafter.kernels import KERNELS
from posecrafter.kernels.temporal_attention import temporal_attention

SMALL: dict[str, dict[str, int]] = {
    "key_frame_attention": {"prompts": 2, "frames": 2, "tokens": 9, "keys": 5, "heads": 2, "head": 8},
    "temporal_attention": {"prompts": 2, "frames": 3, "tokens": 9, "heads": 2, "head": 8},
    "temporal_projection": {"prompts": 2, "frames": 3, "tokens": 9, "heads": 2, "head": 8},
    "group_norm_silu": {"prompts": 2, "frames": 2, "channels": 32, "high": 3, "wide": 3, "groups": 4, "add": 1},
    "layer_norm": {"rows": 5, "channels": 24, "add": 1},
    "gated_linear": {"rows": 5, "channels": 16, "hidden": 24},
    "residual_sum": {"frames": 2, "channels": 16, "high": 3, "wide": 3},
    "guidance_step": {"prompts": 2, "frames": 2, "channels": 4, "high": 3, "wide": 3},
    "warp_latents": {"frames": 2, "channels": 4, "high": 4, "wide": 4, "bilinear": 1},
}


def inputs_of(name: str) -> dict[str, Any]:
    return KERNELS[name].inputs(SMALL[name], torch.float32, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", KERNELS)
def test_schema_and_fake_implementation_agree_with_the_op(name: str) -> None:
    inputs = inputs_of(name)
    if name.startswith("temporal") or name == "group_norm_silu":
        inputs["out"] = torch.empty_like(next(iter(inputs.values())))
    torch.library.opcheck(getattr(torch.ops.posecrafter, name).default, tuple(inputs.values()))


class Both(nn.Module):
    """Two attentions into one buffer, as the fused network has them."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        both = q.new_empty(*q.shape[:2], 2 * q.shape[2])
        temporal_attention(q, k, v, 2, 3, both[..., : q.shape[2]])
        temporal_attention(k, q, v, 2, 3, both[..., q.shape[2] :])
        return both.sin()


def test_compile_and_export_keep_the_ops_whole_and_the_result_the_same() -> None:
    inputs = inputs_of("temporal_attention")
    arguments = tuple(inputs[name] for name in "qkv")
    expected = Both()(*arguments)
    torch.testing.assert_close(torch.compile(Both(), backend="aot_eager", fullgraph=True)(*arguments), expected)
    program = torch.export.export(Both(), arguments)
    torch.testing.assert_close(program.module()(*arguments), expected)
    assert sum("temporal_attention" in str(node.target) for node in program.graph.nodes) == 2
