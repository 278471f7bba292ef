"""What a launch refuses: shapes and dtypes that do not fit, views in another order than is read, odd starts."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from posecrafter.errors import EngineError
from posecrafter.kernels import KERNELS
from posecrafter.kernels.checks import check_grid, check_rows
from posecrafter.kernels.key_frame_attention import tile

SMALL: dict[str, dict[str, int]] = {
    "key_frame_attention": {"prompts": 2, "frames": 2, "tokens": 9, "keys": 9, "heads": 2, "head": 40},
    "temporal_attention": {"prompts": 2, "frames": 2, "tokens": 9, "heads": 2, "head": 40},
    "temporal_projection": {"prompts": 2, "frames": 2, "tokens": 9, "heads": 2, "head": 40},
    "group_norm_silu": {"prompts": 2, "frames": 2, "channels": 32, "high": 3, "wide": 3, "groups": 4, "add": 1},
    "layer_norm": {"rows": 5, "channels": 24, "add": 1},
    "gated_linear": {"rows": 5, "channels": 16, "hidden": 24},
    "residual_sum": {"frames": 2, "channels": 16, "high": 3, "wide": 3},
    "guidance_step": {"prompts": 2, "frames": 2, "channels": 4, "high": 3, "wide": 3},
    "warp_latents": {"frames": 2, "channels": 4, "high": 4, "wide": 4, "bilinear": 0},
}
FIRST = dict(zip(SMALL, ("q", "q", "q", "x", "x", "x", "x", "x", "noise"), strict=True))
TOLD = {"each": "eps"}
"""How a refusal calls an argument, where that is not its name."""


def inputs_of(name: str) -> dict[str, Any]:
    return KERNELS[name].inputs(SMALL[name], torch.float16, torch.Generator().manual_seed(0))


def with_output(name: str) -> dict[str, Any]:
    """`inputs_of`, and where to write for those that can be told."""
    inputs = inputs_of(name)
    return {**inputs, "out": torch.empty_like(inputs["q"])} if name.startswith("temporal") else inputs


def reordered(x: torch.Tensor) -> torch.Tensor:
    """The same numbers with the first two axes exchanged in memory, or of a vector with a gap behind each."""
    return x.repeat_interleave(2)[::2] if x.ndim == 1 else x.transpose(0, 1).contiguous().transpose(0, 1)


def misaligned(x: torch.Tensor) -> torch.Tensor:
    """A copy in the same memory order that starts one element late."""
    room = torch.empty(x.numel() + 1, dtype=x.dtype)
    return room[1:].as_strided(x.shape, x.stride(), 1).copy_(x)


SPOILT = [
    (change, name, key)
    for change in (reordered, misaligned)
    for name in KERNELS
    for key, x in with_output(name).items()
    if isinstance(x, torch.Tensor) and (x.ndim or change is misaligned)  # one number has one order
]


def refused(name: str, inputs: dict[str, Any]) -> EngineError:
    with pytest.raises(EngineError) as caught:
        KERNELS[name].launch(**inputs)
    return caught.value


@pytest.mark.parametrize(("change", "name", "key"), SPOILT)
def test_memory_in_another_order_or_misaligned_is_refused(
    change: Callable[[torch.Tensor], torch.Tensor], name: str, key: str
) -> None:
    inputs = with_output(name)
    inputs[key] = change(inputs[key])
    error = refused(name, inputs)
    assert error.code == "kernel-layout"
    assert re.search(rf"(^|, ){TOLD.get(key, key)} (\[|has|starts)", error.message)


@pytest.mark.parametrize("name", KERNELS)
def test_another_dtype_is_refused_with_those_that_are_allowed(name: str) -> None:
    inputs = inputs_of(name)
    inputs[FIRST[name]] = inputs[FIRST[name]].double()
    error = refused(name, inputs)
    assert error.code == "kernel-dtype"
    assert "is float64, expected float" in error.message


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("key_frame_attention", {"heads": 3}),
        ("key_frame_attention", {"k": torch.zeros(3, 9, 80, dtype=torch.float16)}),
        ("key_frame_attention", {"v": torch.zeros(2, 8, 80, dtype=torch.float16)}),
        ("temporal_attention", {"out": torch.zeros(4, 9, 40, dtype=torch.float16)}),
        ("temporal_attention", {"frames": 3}),
        ("temporal_attention", {"frames": 129}),
        ("temporal_attention", {"heads": 20}),
        ("temporal_projection", {"frames": 33}),
        ("temporal_projection", {"weight": torch.zeros(80, 40, dtype=torch.float16)}),
        ("temporal_projection", {"bias": torch.zeros(40, dtype=torch.float16)}),
        ("temporal_projection", {"residual": torch.zeros(4, 8, 80, dtype=torch.float16)}),
        ("group_norm_silu", {"outer": 3}),
        ("group_norm_silu", {"groups": 5}),
        ("group_norm_silu", {"weight": torch.zeros(31, dtype=torch.float16)}),
        ("group_norm_silu", {"out": torch.zeros(4, 32, 3, 4, dtype=torch.float16)}),
        ("layer_norm", {"x": torch.zeros(2, 5, 24, dtype=torch.float16)}),
        ("layer_norm", {"add": torch.zeros(23, dtype=torch.float16)}),
        ("gated_linear", {"x": torch.zeros(5, 24, dtype=torch.float16)}),
        ("gated_linear", {"weight": torch.zeros(40, 16, dtype=torch.float16)}),
        ("gated_linear", {"bias": torch.zeros(24, dtype=torch.float16)}),
        ("residual_sum", {"y": torch.zeros(2, 16, 3, 4, dtype=torch.float16)}),
        ("residual_sum", {"bias": torch.zeros(15, dtype=torch.float16)}),
        ("guidance_step", {"weight": torch.zeros(3)}),
        ("guidance_step", {"each": torch.zeros(9, 2, 4, 3, 3)}),
        ("warp_latents", {"mode": 2}),
        ("warp_latents", {"source": torch.zeros(4, 4, 5, dtype=torch.float16)}),
    ],
)
def test_shapes_that_do_not_fit_together_are_refused(name: str, change: dict[str, Any]) -> None:
    assert refused(name, {**inputs_of(name), **change}).code == "kernel-shape"


@pytest.mark.parametrize(
    ("out", "code"),
    [
        (torch.zeros(4, 32, 3, 3, dtype=torch.float16), "kernel-layout"),
        (torch.zeros(4, 3, 3, 32).permute(0, 3, 1, 2), "kernel-dtype"),
    ],
)
def test_a_norm_writes_only_into_what_lies_like_its_input(out: torch.Tensor, code: str) -> None:
    assert refused("group_norm_silu", {**inputs_of("group_norm_silu"), "out": out}).code == code


def test_temporal_attention_writes_into_a_slice_of_wider_rows_and_nothing_beside_it() -> None:
    inputs = inputs_of("temporal_attention")
    both = torch.full((4, 9, 160), 7.0, dtype=torch.float16)
    KERNELS["temporal_attention"].launch(**inputs, out=both[..., 80:])
    torch.testing.assert_close(both[..., 80:], KERNELS["temporal_attention"].launch(**inputs), rtol=0, atol=0)
    assert (both[..., :80] == 7).all()


@pytest.mark.parametrize(
    ("name", "frames"),
    [("key_frame_attention", 2), ("temporal_attention", 2), ("temporal_attention", 70), ("temporal_projection", 2)],
)
def test_an_attention_reads_slices_of_wider_rows(name: str, frames: int) -> None:
    sizes = {**SMALL[name], "frames": frames, "tokens": 9 if frames < 9 else 3}
    inputs = KERNELS[name].inputs(sizes, torch.float16, torch.Generator().manual_seed(0))
    wide = {key: torch.cat([inputs[key], torch.full_like(inputs[key], 7.0)], 2) for key in "qkv"}
    sliced = {key: x[..., :80] for key, x in wide.items()}
    expected = KERNELS[name].launch(**inputs)
    torch.testing.assert_close(KERNELS[name].launch(**{**inputs, **sliced}), expected, rtol=0, atol=0)


def test_what_a_kernel_may_write_over_gets_what_it_writes_elsewhere() -> None:
    """Temporal attention its queries, the projection behind it the residual, a norm its input."""
    for name, frames, key in (
        ("temporal_attention", 2, "q"),
        ("temporal_attention", 70, "q"),
        ("temporal_projection", 2, "residual"),
        ("group_norm_silu", 9, "x"),
    ):
        sizes = {**SMALL[name], "frames": frames, "tokens": 3}
        inputs = KERNELS[name].inputs(sizes, torch.float16, torch.Generator().manual_seed(0))
        expected = KERNELS[name].launch(**inputs)
        KERNELS[name].launch(**inputs, out=inputs[key])
        torch.testing.assert_close(inputs[key], expected, rtol=0, atol=0)


def test_keys_and_values_that_lie_differently_are_refused() -> None:
    for name in ("key_frame_attention", "temporal_attention"):
        inputs = inputs_of(name)
        inputs["v"] = torch.cat([inputs["v"]] * 2, 2)[..., :80]
        assert "expected one distance" in refused(name, inputs).message


def test_a_projection_takes_half_of_a_wider_matrix_and_writes_into_wider_rows() -> None:
    inputs = inputs_of("temporal_projection")
    expected = KERNELS["temporal_projection"].launch(**inputs)
    joined, both = torch.randn(80, 160).half(), torch.full((4, 9, 160), 7.0, dtype=torch.float16)
    joined[:, 80:] = inputs["weight"]
    KERNELS["temporal_projection"].launch(**{**inputs, "weight": joined[:, 80:]}, out=both[..., 80:])
    torch.testing.assert_close(both[..., 80:], expected, rtol=0, atol=0)
    assert (both[..., :80] == 7).all()


def test_a_projection_too_wide_or_of_too_many_frames_is_refused_with_what_to_take() -> None:
    for sizes in ({"heads": 8, "head": 80}, {"frames": 33}):
        named = {**SMALL["temporal_projection"], "prompts": 1, **sizes}
        inputs = KERNELS["temporal_projection"].inputs(named, torch.float16, torch.Generator().manual_seed(0))
        error = refused("temporal_projection", inputs)
        assert error.code == "kernel-shape"
        assert "take temporal_attention" in error.message


def test_rows_need_one_distance() -> None:
    wide = torch.zeros(3, 5, 32)
    assert check_rows("out", wide[..., :16]) == 32
    assert check_rows("out", wide[:1, :1, :16]) == 16
    for view in (wide[:, ::2], wide[..., ::2], wide[:, :4]):
        with pytest.raises(EngineError):
            check_rows("out", view)


def test_the_grid_stays_within_the_limits_of_cuda_at_two_prompts_of_33_frames_of_64x64() -> None:
    """Heads folded into the batch make 2 * 33 * 8 * 128 = 67,584 rows of programs there: over the second axis."""
    rows = 33 * 64 * 64
    assert check_grid((-(-rows // tile(40, 90)["M"]), 2 * 8)) == (1056, 16)
    with pytest.raises(EngineError) as caught:
        check_grid((1, 2 * 33 * 8 * 128))
    assert caught.value.code == "kernel-grid"


def test_a_launch_outside_cuda_and_the_interpreter_names_the_op(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton import knobs

    monkeypatch.setattr(knobs.runtime, "interpret", False)
    for name in KERNELS:
        error = refused(name, inputs_of(name))
        assert error.code == "kernel-device"
        assert "use the op" in error.message
