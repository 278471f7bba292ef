"""Every kernel of the registry against its float64 truth, under the interpreter, at odd sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posecrafter.kernels import KERNELS
from posecrafter.kernels.tolerances import TOLERANCES

HALF, BRAIN, FULL = torch.float16, torch.bfloat16, torch.float32
HEADS = [8, 16, 24, 40, 48, 80, 96, 160]


SIZES = {
    "key_frame_attention": ("prompts", "frames", "tokens", "keys", "heads", "head"),
    "temporal_attention": ("prompts", "frames", "tokens", "heads", "head"),
    "temporal_projection": ("prompts", "frames", "tokens", "heads", "head"),
    "group_norm_silu": ("prompts", "frames", "channels", "high", "wide", "groups", "add"),
    "layer_norm": ("rows", "channels", "add"),
    "gated_linear": ("rows", "channels", "hidden"),
    "residual_sum": ("frames", "channels", "high", "wide"),
    "guidance_step": ("prompts", "frames", "channels", "high", "wide"),
    "warp_latents": ("frames", "channels", "high", "wide", "bilinear"),
}


CASES = [
    ("key_frame_attention", (1, 1, 9 * 24, 9 * 24, 2, 40), HALF),
    ("key_frame_attention", (2, 3, 9 * 9, 9 * 9, 1, 80), HALF),
    ("key_frame_attention", (1, 3, 9 * 9, 9 * 9, 1, 160), BRAIN),
    ("key_frame_attention", (2, 17, 9, 77, 1, 40), BRAIN),
    ("key_frame_attention", (1, 2, 5, 64, 2, 64), HALF),
    ("key_frame_attention", (1, 2, 5, 1, 3, 8), HALF),
    ("temporal_attention", (1, 1, 9, 2, 40), HALF),
    ("temporal_attention", (2, 3, 9, 8, 40), HALF),
    ("temporal_attention", (1, 17, 9, 2, 80), BRAIN),
    ("temporal_attention", (2, 17, 5, 1, 160), HALF),
    ("temporal_attention", (1, 33, 3, 2, 40), BRAIN),
    ("temporal_attention", (1, 101, 2, 1, 80), HALF),
    ("temporal_attention", (1, 128, 1, 1, 160), HALF),
    ("temporal_attention", (1, 4, 7, 3, 32), HALF),
    ("temporal_projection", (2, 1, 9 * 9, 2, 40), HALF),
    ("temporal_projection", (2, 3, 9 * 9, 4, 16), HALF),
    ("temporal_projection", (1, 17, 9, 4, 32), BRAIN),
    ("temporal_projection", (1, 17, 9, 2, 80), HALF),
    ("temporal_projection", (2, 17, 5, 1, 160), BRAIN),
    ("temporal_projection", (1, 3, 9, 6, 40), HALF),
    ("temporal_projection", (1, 32, 3, 3, 24), HALF),
    ("temporal_projection", (1, 2, 7, 3, 8), HALF),
    ("group_norm_silu", (2, 3, 40, 9, 9, 4, 1), HALF),
    ("group_norm_silu", (1, 17, 80, 3, 9, 8, 0), BRAIN),
    ("group_norm_silu", (1, 1, 320, 3, 3, 32, 1), HALF),
    ("group_norm_silu", (3, 1, 24, 9, 24, 8, 0), FULL),
    ("layer_norm", (81, 320, 1), HALF),
    ("layer_norm", (3, 1280, 0), BRAIN),
    ("layer_norm", (17, 40, 1), FULL),
    ("layer_norm", (1, 24, 0), HALF),
    ("gated_linear", (9 * 24, 40, 160), HALF),
    ("gated_linear", (17, 320, 72), BRAIN),
    ("gated_linear", (129, 64, 136), HALF),
    ("gated_linear", (1, 8, 8), BRAIN),
    ("gated_linear", (1030, 16, 8), HALF),
    ("residual_sum", (3, 320, 9, 9), HALF),
    ("residual_sum", (17, 40, 9, 24), BRAIN),
    ("residual_sum", (1, 24, 1, 3), FULL),
    ("guidance_step", (1, 1, 4, 9, 9), HALF),
    ("guidance_step", (2, 3, 4, 9, 24), HALF),
    ("guidance_step", (3, 17, 5, 9, 9), BRAIN),
    ("guidance_step", (2, 3, 16, 9, 9), FULL),
    ("warp_latents", (1, 4, 9, 9, 0), HALF),
    ("warp_latents", (17, 4, 9, 24, 0), FULL),
    ("warp_latents", (3, 6, 9, 24, 1), FULL),
    ("warp_latents", (3, 4, 24, 9, 1), HALF),
]


def as_truth(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: x.double().numpy() if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}


def outputs(result: Any) -> list[torch.Tensor]:
    return list(result) if isinstance(result, tuple) else [result]


def assert_near(found: Any, expected: Any, dtype: torch.dtype) -> None:
    bound = TOLERANCES[dtype]
    for y, t in zip(outputs(found), outputs(expected), strict=True):
        assert y.shape == t.shape
        difference = y.double().numpy() - t
        assert np.linalg.norm(difference) <= bound.relative * np.linalg.norm(t)
        assert (np.abs(difference) / (np.abs(t) + np.sqrt(np.square(t).mean()))).max() <= bound.largest


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory holds NaN, so that whatever a kernel leaves out shows, and whatever it reads too early."""
    for name in ("empty", "empty_like"):
        make = getattr(torch, name)

        def poison(*args: Any, make: Any = make, **options: Any) -> torch.Tensor:
            made = make(*args, **options)
            return made.fill_(float("nan")) if made.is_floating_point() else made

        monkeypatch.setattr(torch, name, poison)


def inputs_of(name: str, sizes: tuple[int, ...], dtype: torch.dtype, seed: int = 1) -> dict[str, Any]:
    named = dict(zip(SIZES[name], sizes, strict=True))
    return KERNELS[name].inputs(named, dtype, torch.Generator().manual_seed(seed))


def output_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    return FULL if name == "guidance_step" else dtype


@pytest.mark.parametrize(("name", "sizes", "dtype"), CASES)
@pytest.mark.usefixtures("poisoned")
def test_launch_equals_the_truth_within_the_table(name: str, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = inputs_of(name, sizes, dtype)
    expected = KERNELS[name].truth(**as_truth(inputs))
    assert_near(KERNELS[name].launch(**inputs), expected, output_dtype(name, dtype))


@pytest.mark.parametrize(("name", "sizes", "dtype"), CASES)
def test_op_on_a_cpu_equals_the_truth_within_the_table(name: str, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = inputs_of(name, sizes, dtype, seed=2)
    expected = KERNELS[name].truth(**as_truth(inputs))
    assert_near(KERNELS[name].op(**inputs), expected, output_dtype(name, dtype))


def test_every_kernel_of_the_registry_has_cases() -> None:
    assert {name for name, _, _ in CASES} == set(KERNELS)


def check_launch(name: str, *sizes: int) -> None:
    inputs = inputs_of(name, sizes, HALF)
    assert_near(KERNELS[name].launch(**inputs), KERNELS[name].truth(**as_truth(inputs)), HALF)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(1, 2), st.integers(1, 5), st.integers(1, 40), st.integers(1, 140), st.sampled_from(HEADS))
def test_key_frame_attention_of_any_shape(prompts: int, frames: int, tokens: int, keys: int, head: int) -> None:
    check_launch("key_frame_attention", prompts, frames, tokens, keys, 1, head)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(1, 128), st.integers(1, 5), st.integers(1, 3), st.sampled_from(HEADS))
def test_temporal_attention_of_any_shape(frames: int, tokens: int, heads: int, head: int) -> None:
    check_launch("temporal_attention", 1, frames, tokens, heads, head)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(1, 32), st.integers(1, 5), st.integers(1, 3), st.sampled_from([d for d in HEADS if d <= 80]))
def test_temporal_projection_of_any_shape(frames: int, tokens: int, heads: int, head: int) -> None:
    check_launch("temporal_projection", 1, frames, tokens, heads, head)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    st.integers(1, 2), st.integers(1, 3), st.integers(1, 12), st.integers(2, 9), st.integers(3, 9), st.integers(0, 1)
)
def test_group_norm_silu_of_any_shape(prompts: int, frames: int, share: int, high: int, wide: int, add: int) -> None:
    check_launch("group_norm_silu", prompts, frames, 8 * share, high, wide, 8, add)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(1, 200), st.integers(1, 80), st.integers(0, 1))
def test_layer_norm_of_any_shape(rows: int, channels: int, add: int) -> None:
    check_launch("layer_norm", rows, channels, add)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(1, 200), st.integers(1, 20), st.integers(1, 20))
def test_gated_linear_of_any_shape(rows: int, channels: int, hidden: int) -> None:
    check_launch("gated_linear", rows, 8 * channels, 8 * hidden)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(1, 3), st.integers(1, 80), st.integers(1, 9), st.integers(1, 9))
def test_residual_sum_of_any_shape(frames: int, channels: int, high: int, wide: int) -> None:
    check_launch("residual_sum", frames, 8 * channels, high, wide)
