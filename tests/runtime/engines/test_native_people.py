"""People of a shared bundle on the engine 'native': each computes what a merged bundle of his does, to the bit."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posecrafter.errors import BundleError, EngineError
from posecrafter.export.export import ExportOptions, exported_copy
from posecrafter.export.graphs import make_graphs
from posecrafter.export.layers import save_layers
from posecrafter.export.options import Precision
from posecrafter.export.run import Run
from posecrafter.export.shared import pack_weights
from posecrafter.manifest import Manifest
from posecrafter.runtime import Bundle, Session
from posecrafter.runtime.choose import choose
from posecrafter.runtime.engines import open_engine
from posecrafter.runtime.engines.base import Engine
from posecrafter.runtime.engines.bound import BoundEngine, upload_weights
from posecrafter.runtime.engines.native import MODULE, NativeEngine, kernels
from posecrafter.runtime.engines.onnxruntime import OnnxRuntimeEngine
from posecrafter.runtime.measure import measure
from posecrafter.runtime.person import WEIGHTS, find_pack, read_person, read_weights

Inputs = dict[str, np.ndarray]
Weights = Mapping[str, Mapping[str, np.ndarray]]
Make = Callable[..., Inputs]
Distance = Callable[[np.ndarray, np.ndarray], float]

pytestmark = pytest.mark.skipif(
    find_spec(MODULE) is None, reason="the engine 'native' is not built (neither GCC 12 nor clang)"
)

BF16 = find_spec(MODULE) is not None and "bf16" in kernels()


def run(engine: Engine, inputs: Inputs) -> Inputs:
    buffers = {key: engine.upload(value) for key, value in inputs.items()}
    return {key: engine.download(value) for key, value in engine.load("denoiser").run(buffers).items()}


def weights_of(bundle: Path, person: str) -> Weights:
    """As the runtime reads them; "a" is the bundle's own."""
    if person == "a":
        return read_weights(bundle / "person" / WEIGHTS, Manifest.read(bundle))
    return read_person(Bundle.open(bundle), find_pack(bundle, person))[1]


def bind(engine: Engine, weights: Weights) -> BoundEngine:
    return BoundEngine(engine, upload_weights(engine, weights))


def write_layers(folder: Path, run_folder: Path, bundle: Path, precision: Precision, shared: bool) -> Weights:
    """Write the denoiser's index for a run's person, merged into it or left out, and return his weights."""
    graph, names = make_graphs(Run.read(run_folder).load())["denoiser"], Manifest.read(bundle).shared
    module = exported_copy(graph.module, ExportOptions(precision=precision), doubles=True)
    (folder / "graphs").mkdir(parents=True)
    shutil.copyfile(bundle / "graphs" / "denoiser.onnx", folder / "graphs" / "denoiser.onnx")
    for file in (bundle / "graphs").glob("denoiser.weights"):
        shutil.copyfile(file, folder / "graphs" / file.name)
    save_layers(replace(graph, module=module), folder / "graphs", names["denoiser"] if shared else ())
    packed = pack_weights({"denoiser": module}, names)
    return {"denoiser": {name.partition("/")[2]: tensor.numpy() for name, tensor in packed.items()}}


@pytest.fixture
def inputs(graph_inputs: Make) -> Inputs:
    return graph_inputs("denoiser", 3, 2, 12, 8)


@pytest.mark.parametrize("arithmetic", ["fp32", pytest.param("bf16", marks=pytest.mark.skipif(
    not BF16, reason="this CPU multiplies no bf16"))])  # fmt: skip
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["b", "d"])
def test_a_person_computes_what_his_merged_bundle_does_to_the_bit(
    name: str, precision: Precision, arithmetic: str, shared_bundle: Path, people: dict[str, Path], tmp_path: Path,
    inputs: Inputs,
) -> None:  # fmt: skip
    weights = write_layers(tmp_path / "shared", people[name], shared_bundle, precision, True)
    write_layers(tmp_path / "merged", people[name], shared_bundle, precision, False)
    merged, shared = (NativeEngine(tmp_path / kind, 2, arithmetic) for kind in ("merged", "shared"))
    expected, found = run(merged, inputs), run(bind(shared, weights), inputs)
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value)


def test_people_take_turns_come_back_to_the_bit_and_equal_onnxruntime(
    shared_bundle: Path, inputs: Inputs, graph_inputs: Make, distance: Distance, tolerance: dict[str, float]
) -> None:
    native, onnxruntime = NativeEngine(shared_bundle, 2), OnnxRuntimeEngine(shared_bundle, 1)
    people = {name: weights_of(shared_bundle, name) for name in "abd"}
    own = {name: bind(native, weights) for name, weights in people.items()}
    first: dict[str, np.ndarray] = {}
    for name in "abdabbda":
        eps = run(own[name], inputs)["eps"]
        np.testing.assert_array_equal(first.setdefault(name, eps), eps)
        run(own[name], graph_inputs("denoiser", 1, 1, 8, 8))  # another size in between
    for name, weights in people.items():
        assert distance(first[name], run(bind(onnxruntime, weights), inputs)["eps"]) < tolerance["fp32"]
    assert distance(first["a"], first["b"]) > 0.1
    assert distance(first["b"], first["d"]) > 0.1


def test_a_persons_weights_are_not_read_again_once_they_are_packed(shared_bundle: Path, inputs: Inputs) -> None:
    weights = {graph: {name: array.copy() for name, array in own.items()} for graph, own in
               weights_of(shared_bundle, "b").items()}  # fmt: skip
    person = bind(NativeEngine(shared_bundle, 1), weights)
    expected = run(person, inputs)["eps"]
    for array in weights["denoiser"].values():
        array.fill(np.nan)
    np.testing.assert_array_equal(run(person, inputs)["eps"], expected)


def test_engines_are_measured_on_a_shared_bundle_native_among_them(shared_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(shared_bundle)
    found = measure(bundle, [("onnxruntime", None), ("native", None)], threads=1)
    assert found.failed == {}
    assert 0 < found.figures[1].error < 1e-5
    if kernels() != "plain":
        assert choose(bundle, threads=1).name == "native"


Change = Callable[[dict[str, np.ndarray]], Any]


@pytest.mark.parametrize(("words", "change"), [
    ("is not given a person's denoiser.unet.", lambda own: own.popitem()),
    ("is another than", lambda own: own.update({next(iter(own)): np.zeros((3, 3), np.float32)})),
    ("is another than", lambda own: own.update({next(iter(own)): next(iter(own.values())).astype(np.float16)})),
    ("float64", lambda own: own.update({next(iter(own)): next(iter(own.values())).astype(np.float64)})),
])  # fmt: skip
def test_weights_that_are_missing_or_others_than_the_layers_say_are_refused(
    words: str, change: Change, shared_bundle: Path, inputs: Inputs
) -> None:
    engine = NativeEngine(shared_bundle, 1)
    own = dict(weights_of(shared_bundle, "b")["denoiser"])
    expected = run(bind(engine, {"denoiser": own}), inputs)["eps"]
    spoilt = dict(own)
    change(spoilt)
    with pytest.raises(EngineError, match=words) as caught:
        engine.pack("denoiser", spoilt)
    assert caught.value.code == "engine-load"
    extra = {**own, "denoiser.nobody": np.zeros(3, np.float32)}
    np.testing.assert_array_equal(run(bind(engine, {"denoiser": extra}), inputs)["eps"], expected)


def test_a_damaged_pack_leaves_the_session_as_it_was(shared_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shared_bundle, tmp_path / "bundle"))
    (folder / "persons" / "b" / WEIGHTS).write_bytes(b"no weights")
    with Session.open(folder, "native", threads=1) as session:
        session.load_person("c")
        before = session.bundle
        for person, code in (("b", "pack-hash"), ("zoe", "pack-missing")):
            with pytest.raises(BundleError) as caught:
                session.load_person(person)
            assert caught.value.code == code
        assert session.bundle is before


def test_what_is_no_person_is_no_person_and_a_person_is_no_tensor(
    shared_bundle: Path, tiny_bundle: Path, inputs: Inputs
) -> None:
    engine = NativeEngine(shared_bundle, 1)
    graph, person = engine.load("denoiser"), engine.pack("denoiser", weights_of(shared_bundle, "b")["denoiser"])
    given = {key: engine.upload(value) for key, value in inputs.items()}
    with pytest.raises(EngineError, match="is not given its input 'person'"):
        graph.run(given)
    with pytest.raises(EngineError, match="another tensor than its input 'person'"):
        graph.run({**given, "person": given["x"]})
    for name in ("x", "a"):
        with pytest.raises(EngineError, match=f"another tensor than its input '{name}'"):
            graph.run({**given, **person, name: person["person"]})
    with pytest.raises(EngineError, match="numbers of float32"):
        engine.download(person["person"])
    with pytest.raises(EngineError, match="takes no person's weights"):
        NativeEngine(tiny_bundle, 1).pack("denoiser", {})
    assert graph.run({**given, **person})


LINE = "input unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0.weight f32 denoiser.unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0.weight 2 32 32"  # noqa: E501


@pytest.mark.parametrize(("old", "new"), [
    ("2 32 32", "2 32"), ("2 32 32", "2 32 32 1"), ("2 32 32", "2 32 0"), ("2 32 32", "2 65536 65536"),
    ("2 32 32", "9 1 1 1 1 1 1 1 1 1"), ("2 32 32", "2 16 64"), ("2 32 32", "1 1024"), ("f32", "f64"),
    ("f32", "f16"), ("f32 denoiser", "f32 nobody"), ("input unet", "input uncle"),
])  # fmt: skip
def test_a_damaged_index_is_refused(old: str, new: str, shared_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(shared_bundle / "graphs", tmp_path / "graphs")
    path = tmp_path / "graphs" / "denoiser.layers"
    text, rest = path.read_bytes().split(b"\ndata", 1)
    assert text.count(LINE.encode()) == 1
    header = text.replace(LINE.encode(), LINE.replace(old, new, 1).encode()) + b"\ndata"
    path.write_bytes(header + b" " * (-(len(header) + 1) % 64) + b"\n" + rest[rest.index(b"\n") + 1 :])
    with pytest.raises(EngineError) as caught:
        NativeEngine(tmp_path, 1).pack("denoiser", weights_of(shared_bundle, "a")["denoiser"])
    assert caught.value.code == "engine-load"


def test_a_shared_bundle_of_an_older_release_is_refused_in_one_line(shared_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(shared_bundle / "graphs", tmp_path / "graphs")
    (tmp_path / "graphs" / "denoiser.layers").unlink()
    with pytest.raises(EngineError, match="exported by an older release; export it again") as caught:
        open_engine("native", tmp_path)
    assert caught.value.code == "engine-load"
    assert "\n" not in caught.value.message
