"""GPU operators of the method: one op a file, each a truth, a Triton kernel, a checked launch, a registry entry."""

from posecrafter.kernels import (
    gated_linear,
    group_norm_silu,
    guidance_step,
    key_frame_attention,
    layer_norm,
    residual_sum,
    temporal_attention,
    temporal_projection,
    warp_latents,
)
from posecrafter.kernels.registry import Kernel

KERNELS: dict[str, Kernel] = {
    module.KERNEL.name: module.KERNEL
    for module in (
        key_frame_attention,
        temporal_attention,
        temporal_projection,
        group_norm_silu,
        layer_norm,
        gated_linear,
        residual_sum,
        guidance_step,
        warp_latents,
    )
}
"""What tests, benchmarks and the ahead-of-time build go through."""
