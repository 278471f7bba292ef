"""Fixtures of the export's tests: the tiny run's reference graphs, and one small network to export again and again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from posecrafter.export.export import export_bundle
from posecrafter.export.graphs import Graph, make_graphs
from posecrafter.export.options import ExportOptions
from posecrafter.export.run import Run
from posecrafter.finetune.base import Base, load_base

torch.set_num_threads(1)

Runner = Callable[[Path, Mapping[str, torch.Tensor]], list[np.ndarray]]
Distance = Callable[..., float]


@pytest.fixture(scope="session")
def tolerance() -> dict[str, float]:
    """Relative l2 distances in fp32 unless said."""
    return {
        "engine": 1e-5,  # ONNX Runtime against PyTorch
        "rewrite": 1e-6,  # the same graph with another attention operator, and matrices multiplied beforehand
        "half": 1e-2,  # fp16 against fp32
    }


@pytest.fixture(scope="session")
def tuned(tiny_run: Path) -> Base:
    """The tiny base with the tiny run's person. Shared: not to be changed."""
    return Run.read(tiny_run).load()


@pytest.fixture(scope="session")
def graphs(tuned: Base) -> dict[str, Graph]:
    return make_graphs(tuned)


@pytest.fixture(scope="session")
def half_bundle(people: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of one person on the smallest base in fp16, with plugins. Shared: not to be changed."""
    options = ExportOptions(precision="fp16", plugins=True, max_frames=33)
    return export_bundle(people["a"], tmp_path_factory.mktemp("half") / "bundle", options=options)


@pytest.fixture
def smallest(smallest_base: Path) -> Base:
    return load_base(smallest_base)


@pytest.fixture(scope="session")
def run_onnx() -> Runner:
    """Run an .onnx file on inputs by name; outputs in order."""
    import onnxruntime

    sessions: dict[Path, onnxruntime.InferenceSession] = {}

    def run(path: Path, inputs: Mapping[str, torch.Tensor]) -> list[np.ndarray]:
        if path not in sessions:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.log_severity_level = 1, 3
            sessions[path] = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return sessions[path].run(None, {name: tensor.numpy() for name, tensor in inputs.items()})

    return run


@pytest.fixture(scope="session")
def run_torch() -> Callable[[nn.Module, Mapping[str, torch.Tensor]], list[np.ndarray]]:
    def run(module: nn.Module, inputs: Mapping[str, torch.Tensor]) -> list[np.ndarray]:
        with torch.inference_mode():
            out = module.eval()(*inputs.values())
        return [tensor.numpy() for tensor in (out if isinstance(out, tuple) else (out,))]

    return run
