"""Stable Diffusion 1.5's size on a CPU: guided steps of the denoiser with random weights, nothing downloaded."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from posecrafter.bench.flops import count_flops
from posecrafter.bench.machine import ROOT, commit_of, made_by, measure_roof
from posecrafter.bench.published import PublishedDenoiser
from posecrafter.bench.speed.cases import Case, Runner
from posecrafter.export.export import exported_copy
from posecrafter.export.graphs import Graph, Step, step_graph
from posecrafter.export.layers import save_layers
from posecrafter.export.options import ExportOptions
from posecrafter.export.save import save_graph
from posecrafter.export.trace import trace, translate
from posecrafter.finetune.network import VideoControlNet, VideoDenoiser, VideoUNet
from posecrafter.manifest import Range

SD15 = {
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "norm_eps": 1e-05,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "conditioning_embedding_out_channels": [16, 32, 96, 256],
}


def measure_step(case: Case, work: Path, threads: int | None = None) -> list[dict[str, Any]]:
    """Seconds of a guided step over `case.frames` frames in all, and its share of the machine's roof in its precision.

    The graphs in `work` are exported at a commit's first call.
    """
    (runner,) = case.runners
    published = runner.name.startswith("published")
    cells, folder = case.size // 8, work / "sd15" / "graphs"
    commit = commit_of(ROOT)
    if not made_by(folder / "done", commit):
        shutil.rmtree(folder, ignore_errors=True)
        _export(folder)
        (folder / "done").write_text(str(commit), encoding="utf-8")
    inputs = _graph(_meta()).example({"frames": case.frames, "prompts": 2, "h": cells, "w": cells})
    with torch.device("meta"):
        flops = _count(case, published)
    step = _published(case, inputs) if published else _engine(runner, folder, inputs, threads)
    step()
    seconds = []
    for _ in range(case.rounds):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    roof = measure_roof(runner.precision)
    rate = flops / min(seconds) / 1e9
    return [
        {
            "case": case.name,
            "kind": case.kind,
            "runner": runner.name,
            "label": runner.name,
            "precision": runner.precision,
            "size": case.size,
            "frames": case.frames,
            "step_seconds": round(min(seconds), 3),
            "step_gflop": round(flops / 1e9, 1),
            "gflop_per_second": round(rate, 1),
            "roof": roof,
            "share": round(rate / max(roof.values()), 3),
        }
    ]


def _graph(denoiser: VideoDenoiser) -> Graph:
    return step_graph(Step(denoiser), denoiser.unet.size, tokens=77, timesteps=1000)


def _meta() -> VideoDenoiser:
    with torch.device("meta"):
        return VideoDenoiser(VideoUNet.from_config(SD15), VideoControlNet.from_config(SD15)).eval()


def random_denoiser(dtype: torch.dtype = torch.float32) -> VideoDenoiser:
    """Matrices scaled so that activations stay near 1. 5.3 GB in fp32."""
    denoiser = _meta().to(dtype).to_empty(device="cpu").requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, weight in denoiser.named_parameters():
        if weight.ndim > 1:
            weight.uniform_(-1, 1, generator=generator).mul_((3 / weight[0].numel()) ** 0.5 / 2)
        else:
            weight.fill_(float("norm" in name and name.endswith(".weight")))
    return denoiser


def _export(folder: Path) -> None:
    graph = _graph(random_denoiser())
    graph = replace(graph, module=exported_copy(graph.module, ExportOptions(), doubles=True))
    ranges = {"frames": Range(1, 129), "prompts": Range(1, 8), "h": Range(9, 128), "w": Range(9, 128)}
    save_graph(translate(graph, trace(graph, ranges)), folder, "denoiser", cpu_copy=True)
    save_layers(graph, folder)


def _count(case: Case, published: bool) -> int:
    """Counted on tensors without data."""
    cells, denoiser = case.size // 8, _meta()
    x, text = torch.empty(case.frames, 4, cells, cells), torch.empty(2, 77, 768)
    timestep = torch.zeros(1, dtype=torch.int64)
    if published:
        maps = torch.empty(1, 3, case.frames, case.size, case.size)
        clip = torch.empty(2, 4, case.frames, cells, cells)
        return count_flops(lambda: PublishedDenoiser(denoiser)(clip, timestep, text, maps, 1.0))
    features = torch.empty(case.frames, SD15["block_out_channels"][0], cells, cells)
    return count_flops(lambda: denoiser(x, timestep, text, features, 1.0))


def _published(case: Case, inputs: dict[str, torch.Tensor]) -> Callable[[], Any]:
    denoiser = PublishedDenoiser(random_denoiser())
    maps = torch.zeros(1, 3, case.frames, case.size, case.size)
    clip = inputs["x"].permute(1, 0, 2, 3)[None].repeat(2, 1, 1, 1, 1)

    def step() -> Any:
        with torch.inference_mode():
            return denoiser(clip, inputs["timestep"], inputs["text"], maps, 1.0)

    return step


def _engine(runner: Runner, folder: Path, inputs: dict[str, torch.Tensor], threads: int | None) -> Callable[[], Any]:
    from posecrafter.runtime.engines import PRECISE, open_engine

    precision = runner.precision if runner.name in PRECISE else None
    engine = open_engine(runner.name, folder.parent, threads, precision)
    buffers = {key: engine.upload(value.numpy()) for key, value in inputs.items()}
    graph = engine.load("denoiser")
    return lambda: graph.run(buffers)
