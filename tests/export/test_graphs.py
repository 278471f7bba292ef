from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from diffusers import AutoencoderKL

from posecrafter.export.export import exported_copy
from posecrafter.export.graphs import Graph, Step, VaeDecoder, make_ranges
from posecrafter.export.nodes import Doubling
from posecrafter.export.options import ExportOptions
from posecrafter.export.parity import relative_l2
from posecrafter.finetune.base import Base
from posecrafter.finetune.layers import Upsample

HALVED = [(1, 1, 8, 8), (1, 2, 12, 8), (3, 3, 8, 16), (33, 2, 8, 8)]
ODD = [(1, 1, 9, 9), (1, 2, 8, 9), (3, 3, 9, 16), (17, 2, 16, 9), (33, 2, 8, 8), (33, 1, 5, 7)]
"""Frames, prompts, latent height and width: that halve at every level, and any."""


@pytest.mark.parametrize("variant", ["denoiser.onnx", "denoiser.cpu.onnx"])
@pytest.mark.parametrize(
    ("bundle", "frames", "prompts", "h", "w"),
    [("tiny_bundle", *sizes) for sizes in HALVED] + [("odd_bundle", *sizes) for sizes in ODD],
)
def test_one_denoiser_graph_equals_pytorch_at_every_size(
    bundle: str, frames: int, prompts: int, h: int, w: int, variant: str, graphs: dict[str, Graph],
    request: pytest.FixtureRequest, run_onnx: Any, run_torch: Any, tolerance: dict[str, float],
) -> None:  # fmt: skip
    inputs = graphs["denoiser"].example({"frames": frames, "prompts": prompts, "h": h, "w": w}, seed=frames)
    found = run_onnx(request.getfixturevalue(bundle) / "graphs" / variant, inputs)
    expected = run_torch(graphs["denoiser"].module, inputs)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == np.float32
        assert ours.shape == (frames, 6, h, w)
        assert relative_l2(ours, theirs) < tolerance["engine"]


@pytest.mark.parametrize("frames", [1, 3, 17, 70])
@pytest.mark.parametrize("variant", ["vae_decoder.onnx", "vae_decoder.cpu.onnx"])
def test_the_decoder_graph_equals_pytorch_for_any_number_of_frames(
    frames: int, variant: str, tiny_bundle: Path, graphs: dict[str, Graph],
    run_onnx: Any, run_torch: Any, tolerance: dict[str, float],
) -> None:  # fmt: skip
    inputs = graphs["vae_decoder"].example({"frames": frames, "h": 5, "w": 9})
    (found,) = run_onnx(tiny_bundle / "graphs" / variant, inputs)
    (expected,) = run_torch(graphs["vae_decoder"].module, inputs)
    assert found.shape == (frames, 40, 72, 3)
    assert found.min() >= 0
    assert found.max() <= 255
    assert relative_l2(found, expected) < tolerance["engine"]


@pytest.mark.parametrize(("name", "sizes"), [
    ("pose_encoder", {"frames": 1, "height": 40, "width": 40}),
    ("pose_encoder", {"frames": 17, "height": 72, "width": 128}),
    ("text_encoder", {"prompts": 1}),
    ("text_encoder", {"prompts": 3}),
])  # fmt: skip
def test_the_encoder_graphs_equal_pytorch(
    name: str, sizes: dict[str, int], tiny_bundle: Path, graphs: dict[str, Graph],
    run_onnx: Any, run_torch: Any, tolerance: dict[str, float],
) -> None:  # fmt: skip
    inputs = graphs[name].example(sizes)
    (found,), (expected,) = (
        run_onnx(tiny_bundle / "graphs" / f"{name}.onnx", inputs),
        run_torch(graphs[name].module, inputs),
    )
    assert relative_l2(found, expected) < tolerance["engine"]


def test_step_mixes_the_prompts_and_moves_the_latents(tuned: Base, graphs: dict[str, Graph]) -> None:
    inputs = graphs["denoiser"].example({"frames": 2, "prompts": 2, "h": 8, "w": 8})
    with torch.inference_mode():
        x_next, eps = Step(tuned.denoiser)(**inputs)
        names = ("x", "timestep", "text", "pose_features", "control_scale")
        each = tuned.denoiser(*(inputs[name] for name in names))
    mixed = inputs["weight"][0] * each[0] + inputs["weight"][1] * each[1]
    torch.testing.assert_close(eps, mixed)
    torch.testing.assert_close(x_next, inputs["a"] * inputs["x"] + inputs["b"] * mixed)


def test_decoded_frames_are_the_autoencoders(tuned: Base) -> None:
    vae: AutoencoderKL = tuned.vae
    latents = torch.randn(2, 6, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        frames = VaeDecoder(vae)(latents)
        pixels = vae.decode(latents / vae.config["scaling_factor"]).sample
    expected = ((pixels + 1) * 127.5).clamp(0, 255).permute(0, 2, 3, 1)
    torch.testing.assert_close(frames, expected)


def test_text_is_what_fine_tuning_saw(tuned: Base, graphs: dict[str, Graph]) -> None:
    ids = tuned.tokenizer(["a person"], padding="max_length", max_length=16, return_tensors="pt").input_ids
    with torch.inference_mode():
        text = graphs["text_encoder"].module(ids)
    torch.testing.assert_close(text, tuned.encode_text(["a person"]))


@pytest.mark.parametrize("name", ["pose_encoder", "denoiser", "vae_decoder", "text_encoder"])
def test_the_exported_copy_computes_the_same_and_leaves_the_original_alone(
    name: str, graphs: dict[str, Graph], run_torch: Any, tolerance: dict[str, float]
) -> None:
    graph = graphs[name]
    before = {key: value.clone() for key, value in graph.module.state_dict().items()}
    inputs = graph.example({"frames": 3, "prompts": 2, "h": 9, "w": 8, "height": 72, "width": 64})
    copied = exported_copy(graph.module, ExportOptions())
    for ours, theirs in zip(run_torch(copied, inputs), run_torch(graph.module, inputs), strict=True):
        assert relative_l2(ours, theirs) < tolerance["rewrite"]
    for key, value in graph.module.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("name", ["pose_encoder", "denoiser", "vae_decoder", "text_encoder"])
def test_the_half_copy_has_float32_borders_and_stays_close(
    name: str, graphs: dict[str, Graph], run_torch: Any, tolerance: dict[str, float]
) -> None:
    graph = graphs[name]
    inputs = graph.example({"frames": 3, "prompts": 2, "h": 9, "w": 8, "height": 72, "width": 64})
    half = exported_copy(graph.module, ExportOptions(precision="fp16"))
    assert {tensor.dtype for tensor in half.parameters()} == {torch.float16}
    for ours, theirs in zip(run_torch(half, inputs), run_torch(graph.module, inputs), strict=True):
        assert ours.dtype == np.float32
        assert relative_l2(ours, theirs) < tolerance["half"]


@pytest.mark.parametrize(("size", "multiple"), [(64, 4), (72, 1)])
def test_ranges_cover_33_guided_frames_and_start_above_one_cell_at_the_lowest_level(
    size: int, multiple: int, tuned: Base
) -> None:
    sized = replace(tuned, defaults=replace(tuned.defaults, width=64, height=size))
    ranges = make_ranges(sized, ExportOptions())
    assert {1, 33} <= {count for count in range(40) if count in ranges["frames"]}
    assert 2 in ranges["prompts"]
    assert [cells for cells in range(20) if cells in ranges["h"]] == (list(range(5, 20)) if size == 72 else [8, 12, 16])
    assert ranges["h"].multiple == multiple
    assert ranges["h"] == ranges["w"] == ranges["height"].divided(8)
    assert (40 in ranges["height"]) == (multiple == 1)
    assert 44 not in ranges["height"]
    assert {64, size} <= {pixels for pixels in range(100) if pixels in ranges["height"]}


@pytest.mark.parametrize(("high", "wide"), [(1, 1), (4, 5), (7, 3)])
def test_one_transposed_convolution_doubles_and_convolves(high: int, wide: int) -> None:
    upsample, generator = Upsample(24), torch.Generator().manual_seed(0)
    x = torch.randn(2, 24, high, wide, generator=generator)
    with torch.inference_mode():
        expected = upsample(x, (2 * high, 2 * wide))
        found = Doubling(upsample)(x)
    assert relative_l2(found.numpy(), expected.numpy()) < 1e-6


def test_levels_that_halve_without_rest_are_doubled_by_one_operator(tiny_bundle: Path, odd_bundle: Path) -> None:
    for bundle, expected in ((tiny_bundle, (2, 0)), (odd_bundle, (0, 2))):
        for variant in ("denoiser.onnx", "denoiser.cpu.onnx"):
            nodes = onnx.load(bundle / "graphs" / variant, load_external_data=False).graph.node
            kinds = [node.op_type for node in nodes]
            assert (kinds.count("ConvTranspose"), kinds.count("Resize")) == expected
        decoder = onnx.load(bundle / "graphs" / "vae_decoder.onnx", load_external_data=False).graph.node
        assert {"Resize", "Upsample"}.isdisjoint(node.op_type for node in decoder)
