"""Where a step's time goes, operator by operator: ONNX Runtime's and OpenVINO's own profilers, best of four runs."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from posecrafter.bench.speed.cases import Case
from posecrafter.bench.speed.material import prepare
from posecrafter.export.reference import reference_graphs

RUNS = 4
SHOWN = 0.01
"""Operators under this share of a step are summed up as "other"."""


def operator_shares(case: Case, work: Path, threads: int | None = None) -> list[dict[str, Any]]:
    """One record an engine: seconds of one guided step as the sum of its kernels, and each operator's share."""
    run, bundle = prepare(work, case.size)
    cells = case.size // 8
    sizes = {"frames": case.frames + 1, "prompts": 2, "h": cells, "w": cells}
    inputs = {name: tensor.numpy() for name, tensor in reference_graphs(run)["denoiser"].example(sizes).items()}
    records = []
    for runner in case.runners:
        profile = {"onnxruntime": _onnxruntime, "openvino": _openvino}[runner.name]
        times = profile(bundle / "graphs", inputs, threads or 0)
        total = sum(times.values())
        shares = {name: round(seconds / total, 4) for name, seconds in times.most_common()}
        shown = {name: share for name, share in shares.items() if share >= SHOWN}
        records.append(
            {
                "case": case.name,
                "kind": case.kind,
                "runner": runner.name,
                "label": runner.name,
                "size": case.size,
                "frames": case.frames,
                "step_seconds": round(total, 4),
                "shares": {**shown, "other": round(1 - sum(shown.values()), 4)},
            }
        )
    return records


def _onnxruntime(graphs: Path, inputs: dict[str, np.ndarray], threads: int) -> Counter[str]:
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level, options.enable_profiling = 3, True
        options.intra_op_num_threads = threads  # 0: one a core
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(graphs / "denoiser.cpu.onnx"), options, providers=["CPUExecutionProvider"])
        for _ in range(RUNS):
            session.run(None, inputs)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    best: dict[tuple[str, str], float] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            key = (event["name"], event["args"]["op_name"])
            best[key] = min(best.get(key, np.inf), event["dur"] / 1e6)
    return _summed(best)


def _openvino(graphs: Path, inputs: dict[str, np.ndarray], threads: int) -> Counter[str]:
    import openvino as ov

    core = ov.Core()
    model = core.read_model(graphs / "denoiser.onnx")
    model.reshape({port.any_name: list(inputs[port.any_name].shape) for port in model.inputs})
    options = {"PERFORMANCE_HINT": "LATENCY", "PERF_COUNT": True, "INFERENCE_PRECISION_HINT": "f32"} | (
        {"INFERENCE_NUM_THREADS": threads} if threads else {}
    )
    request = core.compile_model(model, "CPU", options).create_infer_request()
    best: dict[tuple[str, str], float] = {}
    for _ in range(RUNS):
        request.infer(inputs)
        for node in request.get_profiling_info():
            key = (node.node_name, node.node_type)
            best[key] = min(best.get(key, np.inf), node.real_time.total_seconds())
    return _summed(best)


def _summed(best: dict[tuple[str, str], float]) -> Counter[str]:
    total: Counter[str] = Counter()
    for (_, operator), seconds in best.items():
        total[operator] += seconds
    return total
