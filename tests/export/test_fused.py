"""The network with the kernels in its layers' places computes what the plain network computes."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

pytest.importorskip("triton", reason="the kernels need Triton, which is made for Linux")

from posecrafter.bench.gpu.held import count_held
from posecrafter.bench.gpu.network import SD15
from posecrafter.errors import EngineError
from posecrafter.export import fused
from posecrafter.export.graphs import Graph, make_graphs
from posecrafter.export.parity import relative_l2
from posecrafter.export.reference import TorchOptions, open_reference, prepared
from posecrafter.export.tolerances import TOLERANCES
from posecrafter.finetune.base import Base
from posecrafter.kernels import KERNELS
from posecrafter.runtime import Bundle, Request, Session


@pytest.mark.parametrize(
    ("frames", "prompts", "high", "wide"), [(1, 1, 8, 8), (1, 2, 5, 5), (3, 2, 5, 9), (17, 3, 5, 5)]
)
def test_the_fused_denoiser_equals_the_plain_one(
    frames: int, prompts: int, high: int, wide: int, graphs: dict[str, Graph], run_torch: Any
) -> None:
    graph = graphs["denoiser"]
    placed = fused.place_kernels(copy.deepcopy(graph.module)).eval()
    inputs = graph.example({"frames": frames, "prompts": prompts, "h": high, "w": wide})
    for ours, theirs in zip(run_torch(placed, inputs), run_torch(graph.module, inputs), strict=True):
        assert ours.shape == theirs.shape
        assert relative_l2(ours, theirs) < 1e-5


def test_a_feed_forward_sees_a_bounded_part_of_the_tokens_at_a_time(
    graphs: dict[str, Graph], run_torch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, seen, hidden = graphs["denoiser"], [], fused.gated_linear
    placed = fused.place_kernels(copy.deepcopy(graph.module)).eval()
    monkeypatch.setattr(fused, "gated_linear", lambda x, *rest: (seen.append(x.numel()), hidden(x, *rest))[1])
    monkeypatch.setattr(fused, "PASS", 1280)
    inputs = graph.example({"frames": 3, "prompts": 2, "h": 5, "w": 9})
    ours, theirs = run_torch(placed, inputs)[0], run_torch(graph.module, inputs)[0]
    assert relative_l2(ours, theirs) < 1e-5
    assert max(seen) <= 1280
    assert sum(seen) > 2 * 3 * 5 * 9 * 32


def test_a_step_of_stable_diffusion_with_kernels_holds_three_fifths_of_the_published_loop() -> None:
    """Weights and activations of 16 target frames and the reference at 512x512, two prompts, counted."""
    assert count_held("kernels", SD15).both < 0.6 * count_held("published", SD15).both


def test_pose_features_stay_in_the_precision_of_the_network_that_takes_them(smallest: Base) -> None:
    graphs = make_graphs(smallest)
    maps = torch.rand(2, 3, 64, 64)
    half = prepared(graphs["pose_encoder"], TorchOptions(precision="fp16")).module(maps)
    assert half.dtype == torch.float16
    assert prepared(make_graphs(smallest)["pose_encoder"], TorchOptions()).module(maps).dtype == torch.float32


def test_images_stay_channels_last_from_layer_to_layer(graphs: dict[str, Graph], run_torch: Any) -> None:
    """Where one is not, the next convolution or norm turns it round: the slowest copy there is."""
    graph, turned = graphs["denoiser"], []
    placed = fused.place_kernels(copy.deepcopy(graph.module)).eval()

    def look(module: nn.Module, given: tuple[Any, ...], result: Any) -> None:
        for x in tree_leaves((given, result)):
            if isinstance(x, Tensor) and x.ndim == 4 and not x.is_contiguous(memory_format=torch.channels_last):
                turned.append((type(module).__name__, x.shape))

    for module in placed.denoiser.modules():
        module.register_forward_hook(look)
    run_torch(placed, graph.example({"frames": 3, "prompts": 2, "h": 8, "w": 8}))
    assert turned == []


def test_every_norm_and_every_attention_of_the_denoiser_is_fused(graphs: dict[str, Graph]) -> None:
    placed = fused.place_kernels(copy.deepcopy(graphs["denoiser"].module))
    left = {type(module).__name__ for module in placed.modules()} & {
        "PooledGroupNorm", "GroupNorm", "LayerNorm", "Attend", "Attention", "GatedGelu", "ResBlock", "Transformer",
        "TransformerBlock", "Step",
    }  # fmt: skip
    assert left == set()


def watched(monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any]) -> dict[str, int]:
    """Put `run`(name, arguments) in every op's place in the network; returns how often each was called."""
    calls = dict.fromkeys(KERNELS, 0)

    def replacement(name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            calls[name] += 1
            return run(name, arguments)

        return call

    for name in KERNELS:
        if hasattr(fused, name):
            monkeypatch.setattr(fused, name, replacement(name))
    return calls


def checked(name: str, arguments: tuple[Any, ...]) -> Any:
    """The op, behind the checks of the Triton launch."""
    module = sys.modules[f"posecrafter.kernels.{name}"]
    inputs = list(arguments)
    if name == "temporal_attention" and not isinstance(inputs[-1], Tensor):
        inputs.append(torch.empty_like(inputs[0]))
    if name == "group_norm_silu":
        x, weight, bias, add, groups, _, outer, _, out = inputs
        module.check(x, weight, bias, add, groups, outer, torch.empty_like(x) if out is None else out)
    elif name == "layer_norm":
        module.check(*inputs[:-1])
    else:
        module.check(*inputs)
    return KERNELS[name].op(*arguments)


def test_the_network_hands_the_kernels_what_they_accept(
    graphs: dict[str, Graph], run_torch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = graphs["denoiser"]
    calls = watched(monkeypatch, checked)
    placed = fused.place_kernels(copy.deepcopy(graph.module)).half()
    run_torch(placed, graph.example({"frames": 4, "prompts": 2, "h": 5, "w": 9}))
    assert [name for name, count in calls.items() if count == 0] == ["temporal_projection", "warp_latents"]


@pytest.mark.slow
def test_the_network_on_interpreted_kernels_equals_the_plain_one(
    smallest: Base, run_torch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In fp16, with every op's Triton kernel interpreted."""
    graph = make_graphs(smallest)["denoiser"]
    inputs = graph.example({"frames": 4, "prompts": 2, "h": 4, "w": 4})
    expected = run_torch(graph.module, inputs)
    watched(monkeypatch, lambda name, arguments: KERNELS[name].launch(*arguments))
    found = run_torch(fused.place_kernels(graph.module).half(), inputs)
    for ours, theirs in zip(found, expected, strict=True):
        assert relative_l2(ours, theirs) < TOLERANCES["fp16"].graph


def test_the_torch_engine_with_kernels_renders_what_the_bundle_renders(tiny_run: Path, tiny_bundle: Path) -> None:
    request = Request(poses=Bundle.open(tiny_bundle).poses[[0, 2, 4, 1, 3]], steps=3, window=3)
    options = TorchOptions(kernels=True, record=True)
    with Session.open(tiny_bundle, "onnxruntime", threads=1) as session:
        expected = session.render(request).frames
    with open_reference(tiny_run, options=options) as session:
        found = session.render(request).frames
    assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"device": "tpu"}, "device-unknown"),
        ({"device": "xpu"}, "device-unknown"),
        ({"device": "cuda"}, "device-missing"),
    ],
)
def test_options_that_cannot_be_had_are_refused(options: dict[str, Any], code: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("a machine with a GPU has these devices")
    with pytest.raises(EngineError) as caught:
        TorchOptions(**options)
    assert caught.value.code == code


def test_kernels_without_triton_are_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posecrafter.export.reference.find_spec", lambda name: None)
    with pytest.raises(EngineError) as caught:
        TorchOptions(kernels=True)
    assert caught.value.code == "engine-missing"
    assert "posecrafter[cuda]" in caught.value.message
