"""ONNX Runtime's adapter: what its graphs hold in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from posecrafter.runtime import Bundle, Request, Session
from posecrafter.runtime.engines import onnxruntime as adapter
from posecrafter.runtime.engines.onnxruntime import OnnxRuntimeEngine

SIDE = 5000
LARGE = 4 * SIDE**2
"""Bytes of what a graph holds between its two nodes: 100 MB."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two graphs, `first` and `second`, that each make a large tensor of one number and add it up."""
    (tmp_path / "graphs").mkdir()
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Expand", ["x", "shape"], ["large"]),
            onnx.helper.make_node("ReduceSum", ["large"], ["total"], keepdims=0),
        ],
        "large",
        [value("x", onnx.TensorProto.FLOAT, [1])],
        [value("total", onnx.TensorProto.FLOAT, [])],
        [onnx.numpy_helper.from_array(np.array([SIDE, SIDE]), "shape")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    for name in ("first", "second"):
        onnx.save(model, tmp_path / "graphs" / f"{name}.onnx")
    return tmp_path


def _resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def _run(engine: OnnxRuntimeEngine, graph: str) -> float:
    return float(engine.download(engine.load(graph).run({"x": engine.upload(np.ones(1, np.float32))})["total"]))


def test_the_graphs_of_an_engine_share_their_memory_and_leave_it_when_closed(folder: Path) -> None:
    engine = OnnxRuntimeEngine(folder, threads=1)
    before = _resident()
    assert _run(engine, "first") == SIDE**2
    one = _resident()
    assert one - before > 0.9 * LARGE
    assert _run(engine, "second") == SIDE**2
    assert _resident() - one < 0.3 * LARGE
    engine.close()
    assert _resident() - before < 0.3 * LARGE


def test_a_download_stays_what_it_was_when_the_memory_is_used_again(tiny_bundle: Path) -> None:
    # An inverted frame is downloaded and kept; with two evaluations a step its memory came to be written again.
    request = Request(poses=Bundle.open(tiny_bundle).poses[[0, 2, 4]], steps=2, inversion_iterations=2)
    with Session.open(tiny_bundle, "onnxruntime", threads=1) as session:
        first = session.render(request).frames
        for _ in range(3):
            np.testing.assert_array_equal(session.render(request).frames, first)


def test_no_arena_is_renewed_while_a_graph_is_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # ONNX Runtime itself looks for the arena without a lock; two threads crash within seconds.
    watched: list[bool] = []

    def watch(real: Any) -> Any:
        return lambda *given, **named: watched.append(adapter._ARENAS.locked()) or real(*given, **named)

    for name in ("InferenceSession", "create_and_register_allocator"):
        monkeypatch.setattr(adapter.ort, name, watch(getattr(adapter.ort, name)))
    engine = OnnxRuntimeEngine(folder, threads=1)
    engine.load("first")
    engine.close()
    assert watched == [True, True, True]
