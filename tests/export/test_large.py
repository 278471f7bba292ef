"""Stable Diffusion 1.5's size with random weights: too large for one protobuf file."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from posecrafter.bench.speed.large import random_denoiser
from posecrafter.export.export import exported_copy
from posecrafter.export.graphs import Step, step_graph
from posecrafter.export.options import ExportOptions
from posecrafter.export.parity import relative_l2
from posecrafter.export.save import save_graph
from posecrafter.export.tensorrt_graph import tensorrt_copy
from posecrafter.export.tensorrt_plan import build_plan
from posecrafter.export.trace import trace, translate
from posecrafter.manifest import Range
from posecrafter.peak import peak_mib
from posecrafter.progress import silent
from posecrafter.runtime.engines.built import Profile


@dataclass(frozen=True)
class Exported:
    folder: Path
    example: dict[str, torch.Tensor]
    expected: list[np.ndarray]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, run_torch: Any) -> Exported:
    """The fp16 denoiser as export writes it, and what PyTorch computes."""
    denoiser = random_denoiser(torch.float16)
    graph = step_graph(Step(denoiser), denoiser.unet.size, tokens=77, timesteps=1000)
    ranges = {"frames": Range(1, 129), "prompts": Range(1, 8), "h": Range(9, 128), "w": Range(9, 128)}
    example = graph.example({"frames": 2, "prompts": 2, "h": 9, "w": 10})
    expected = run_torch(graph.module, example)
    half = replace(graph, module=exported_copy(graph.module, ExportOptions(precision="fp16")))
    graph.module.to_empty(device="meta")
    folder = tmp_path_factory.mktemp("large")
    save_graph(translate(half, trace(half, ranges)), folder, "denoiser", cpu_copy=True)
    return Exported(folder, example, expected)


@pytest.mark.slow
def test_sd15_in_half_precision_is_exported_with_external_weights_and_runs(
    exported: Exported, run_onnx: Any, tolerance: dict[str, float]
) -> None:
    sizes = {path.name: path.stat().st_size for path in exported.folder.iterdir()}
    print(sizes)
    assert sizes["denoiser.weights"] > 2**31
    assert sizes["denoiser.onnx"] + sizes["denoiser.cpu.onnx"] < 2**24
    found = run_onnx(exported.folder / "denoiser.cpu.onnx", exported.example)
    for ours, theirs in zip(found, exported.expected, strict=True):
        assert np.isfinite(ours).all()
        assert relative_l2(ours, theirs) < tolerance["half"]


@pytest.mark.slow
def test_sd15_is_built_whole_into_one_plan_with_every_attention_fused(exported: Exported, tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is made for x86-64, and not for macOS")

    source, start = exported.folder / "denoiser.onnx", time.perf_counter()
    marked = tensorrt_copy(source, "fp16")
    # UNet: 15 blocks of key-frame, temporal and cross-attention and a mid block of two; ControlNet: 7 blocks of two.
    assert (marked.fused, marked.decomposed) == (15 * 3 + 2 + 7 * 2, 0)
    cells = (64, 64, 64)
    profile = Profile({"frames": (17, 17, 17), "h": cells, "w": cells, "prompts": (2, 2, 2)})
    plan = build_plan(trt, marked.model, source, (profile,), ("sm89",), silent)
    peak = peak_mib(resource.getrusage(resource.RUSAGE_SELF)) / 1024
    seconds = time.perf_counter() - start
    print(
        {"layers": plan.layers, "plan_bytes": plan.data.nbytes, "seconds": round(seconds), "peak_gib": round(peak, 1)}
    )
    (tmp_path / "denoiser.plan").write_bytes(memoryview(plan.data))
    weights = (exported.folder / "denoiser.weights").stat().st_size
    assert weights < (tmp_path / "denoiser.plan").stat().st_size < 2 * weights
    assert peak < 24
