from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from posecrafter.errors import EngineError
from posecrafter.runtime import Bundle, Request, Session
from posecrafter.runtime.engines import native as adapter
from posecrafter.runtime.engines import open_engine
from posecrafter.runtime.engines.base import Engine
from posecrafter.runtime.engines.native import MODULE, NativeEngine, kernels
from posecrafter.runtime.engines.onnxruntime import OnnxRuntimeEngine

Inputs = dict[str, np.ndarray]
Make = Callable[..., Inputs]
Distance = Callable[[np.ndarray, np.ndarray], float]

GRAPHS = ("pose_encoder", "denoiser", "vae_decoder", "text_encoder")

pytestmark = pytest.mark.skipif(
    find_spec(MODULE) is None, reason="the engine 'native' is not built (neither GCC 12 nor clang)"
)


def run(engine: Engine, name: str, inputs: Inputs) -> Inputs:
    buffers = {key: engine.upload(value) for key, value in inputs.items()}
    return {key: engine.download(value) for key, value in engine.load(name).run(buffers).items()}


@pytest.fixture(scope="module")
def native(tiny_bundle: Path) -> NativeEngine:
    return NativeEngine(tiny_bundle, threads=2)


@pytest.fixture(scope="module")
def onnxruntime(tiny_bundle: Path) -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine(tiny_bundle, threads=1)


@pytest.fixture
def folder(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle's graphs, to spoil."""
    shutil.copytree(tiny_bundle / "graphs", tmp_path / "graphs")
    return tmp_path


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("sizes", [(1, 1, 8, 8), (3, 2, 12, 8), (17, 3, 8, 20)])
def test_every_graph_equals_onnxruntime(
    name: str, sizes: tuple[int, ...], native: NativeEngine, onnxruntime: OnnxRuntimeEngine, graph_inputs: Make,
    distance: Distance, tolerance: dict[str, float],
) -> None:  # fmt: skip
    inputs = graph_inputs(name, *sizes)
    found, expected = run(native, name, inputs), run(onnxruntime, name, inputs)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].shape == value.shape
        assert distance(found[key], value) < tolerance["fp32"]


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("sizes", [(1, 1, 9, 8), (3, 2, 9, 5), (17, 3, 5, 13), (2, 1, 7, 7)])
def test_sizes_that_do_not_halve_equal_onnxruntime(
    name: str, sizes: tuple[int, ...], odd_bundle: Path, graph_inputs: Make, distance: Distance, tolerance: dict
) -> None:
    inputs = graph_inputs(name, *sizes)
    found, expected = (run(e(odd_bundle, 2), name, inputs) for e in (NativeEngine, OnnxRuntimeEngine))
    for key, value in expected.items():
        assert found[key].shape == value.shape
        assert distance(found[key], value) < tolerance["fp32"]


def halve(path: Path) -> None:
    """Write an index of layers again, its tensors as halves in its own file."""
    text, binary = path.read_bytes().split(b"\ndata", 1)
    own = binary[binary.index(b"\n") + 1 :]
    lines, stored, end = [], [], 0
    for line in text.decode().split("\n"):
        words = line.split(" ")
        if words[0] == "tensor":
            _, name, word, file, offset, count, *rest = words
            assert word == "f32"
            all_bytes = own if file == "-" else path.with_name(file).read_bytes()
            half = np.frombuffer(all_bytes, np.float32, int(count) // 4, int(offset)).astype(np.float16)
            line = " ".join(["tensor", name, "f16", "-", str(end), str(half.nbytes), *rest])
            stored.append(half.tobytes() + bytes(-half.nbytes % 64))
            end += len(stored[-1])
        lines.append(line)
    header = "\n".join([*lines, "data"]).encode()
    path.write_bytes(header + b" " * (-(len(header) + 1) % 64) + b"\n" + b"".join(stored))


@pytest.mark.parametrize("name", GRAPHS)
def test_weights_in_half_precision_are_computed_with_in_single(
    name: str, folder: Path, native: NativeEngine, graph_inputs: Make, distance: Distance
) -> None:
    halve(folder / "graphs" / f"{name}.layers")
    inputs = graph_inputs(name, 3, 2, 8, 8)
    found, expected = run(NativeEngine(folder, 1), name, inputs), run(native, name, inputs)
    for key, value in expected.items():
        assert 1e-6 < distance(found[key], value) < 2e-3


@pytest.mark.skipif(find_spec(MODULE) is None or "bf16" not in kernels(), reason="this CPU multiplies no bf16")
@pytest.mark.parametrize("sizes", [(1, 1, 8, 8), (3, 2, 12, 8)])
def test_bf16_rounds_the_denoisers_products_alone(
    sizes: tuple[int, ...], tiny_bundle: Path, native: NativeEngine, graph_inputs: Make, distance: Distance,
    tolerance: dict[str, float],
) -> None:  # fmt: skip
    engine = NativeEngine(tiny_bundle, 1, "bf16")
    for name in GRAPHS:
        inputs = graph_inputs(name, *sizes)
        found, expected = run(engine, name, inputs), run(native, name, inputs)
        for key, value in expected.items():
            if name == "denoiser":
                assert 1e-5 < distance(found[key], value) < tolerance["bf16"]
            else:
                np.testing.assert_array_equal(found[key], value)


@pytest.mark.parametrize("name", GRAPHS)
def test_the_number_of_threads_does_not_change_a_bit(name: str, tiny_bundle: Path, graph_inputs: Make) -> None:
    inputs = graph_inputs(name, 3, 2, 12, 8)
    one, two, three = (run(NativeEngine(tiny_bundle, threads), name, inputs) for threads in (1, 2, 3))
    for key, value in one.items():
        np.testing.assert_array_equal(two[key], value)
        np.testing.assert_array_equal(three[key], value)


def test_a_bundle_renders_what_onnxruntime_renders(tiny_bundle: Path) -> None:
    request = Request(poses=Bundle.open(tiny_bundle).poses[[0, 2, 4]], steps=3, prompt="another person")
    frames = []
    for engine in ("native", "onnxruntime"):
        with Session.open(tiny_bundle, engine, threads=1) as session:
            assert session.engine.name == engine
            frames.append(session.render(request).frames.astype(float))
    assert ((frames[0] - frames[1]) ** 2).mean() <= 255**2 / 10**6.0  # 60 dB


def test_an_output_stays_what_it_was_when_the_graph_runs_again(native: NativeEngine, graph_inputs: Make) -> None:
    inputs = {key: native.upload(v) for key, v in graph_inputs("vae_decoder", 1, 1, 5, 5).items()}
    graph = native.load("vae_decoder")
    first = graph.run(inputs)["frames"]
    before = native.download(first)
    graph.run({"latents": native.upload(np.zeros((1, 6, 5, 5), np.float32))})
    np.testing.assert_array_equal(native.download(first), before)


def test_an_upload_is_a_copy_of_any_order_and_keeps_a_scalars_shape(native: NativeEngine) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    buffers = [native.upload(array), native.upload(array.T), native.upload(array[:, ::2])]
    expected = [array.copy(), array.T.copy(), array[:, ::2].copy()]
    array[:] = 0
    for buffer, value in zip(buffers, expected, strict=True):
        np.testing.assert_array_equal(native.download(buffer), value)
    assert native.download(native.upload(np.array(2.5, np.float32))).shape == ()


WRONG: list[tuple[str, str, Callable[[np.ndarray], np.ndarray]]] = [
    ("vae_decoder", "latents", lambda x: x[:, :5]),
    ("vae_decoder", "latents", lambda x: x[0]),
    ("vae_decoder", "latents", lambda x: x[:0]),
    ("vae_decoder", "latents", lambda x: x.astype(np.int64)),
    ("pose_encoder", "control_images", lambda x: x[:, :2]),
    ("text_encoder", "input_ids", lambda x: x[:, :-1]),
    ("text_encoder", "input_ids", lambda x: x.astype(np.float32)),
    ("text_encoder", "input_ids", lambda x: x + 1000),
    ("text_encoder", "input_ids", lambda x: x - 1000),
    ("denoiser", "x", lambda x: x[:, 1:]),
    ("denoiser", "pose_features", lambda x: x[1:]),
    ("denoiser", "pose_features", lambda x: x[..., :7]),
    ("denoiser", "weight", lambda x: x[1:]),
    ("denoiser", "text", lambda x: x[:, :, :-1]),
    ("denoiser", "weight", lambda x: x[None]),
    ("denoiser", "timestep", lambda x: x.astype(np.float32)),
    ("denoiser", "timestep", lambda x: np.array([1, 2])),
    ("denoiser", "a", lambda x: x.astype(np.int64)),
    ("denoiser", "pose_features", lambda x: x[:, 1:]),
    ("denoiser", "control_scale", lambda x: np.zeros(3, np.float32)),
]


@pytest.mark.parametrize(("graph", "name", "spoil"), WRONG)
def test_an_input_of_another_size_or_type_is_refused(
    graph: str, name: str, spoil: Callable[[np.ndarray], np.ndarray], native: NativeEngine, graph_inputs: Make
) -> None:
    inputs = graph_inputs(graph, 3, 2, 8, 8)
    with pytest.raises(EngineError) as caught:
        run(native, graph, inputs | {name: spoil(inputs[name])})
    assert caught.value.code == "engine-run"
    assert name in caught.value.message
    assert run(native, graph, inputs)


def test_an_input_that_is_not_given_or_of_no_type_that_graphs_have_is_refused(native: NativeEngine) -> None:
    with pytest.raises(EngineError, match="is not given its input 'latents'") as caught:
        native.load("vae_decoder").run({})
    assert caught.value.code == "engine-run"
    with pytest.raises(EngineError, match="float64"):
        native.upload(np.zeros(3))


def edit(old: str, new: str) -> Callable[[bytes], bytes]:
    """An index with one piece of its text in another's place; its binary part stays aligned."""

    def change(whole: bytes) -> bytes:
        text, rest = whole.split(b"\ndata", 1)
        assert text.count(old.encode()) == 1
        header = text.replace(old.encode(), new.encode()) + b"\ndata"
        return header + b" " * (-(len(header) + 1) % 64) + rest[rest.index(b"\n") :]

    return change


CONV = "decoder.conv_in.weight f32 vae_decoder.weights 0 3456 plain 4 16 6 3 3"


@pytest.mark.parametrize("spoil", [
    lambda whole: b"", lambda whole: whole[:10], lambda whole: whole[: whole.index(b"\ndata") + 3],
    lambda whole: whole[: len(whole) // 2], lambda whole: whole[: -whole.index(b"\ndata")],
    lambda whole: b"\x00" * len(whole), lambda whole: whole[::-1], lambda whole: b"\n" * 100,
    lambda whole: b"posecrafter layers 1\n" + whole[:50] * 20,
    edit("layers 1", "layers 2"), edit("graph vae_decoder", "graph of_nothing"), edit("graph vae_decoder\n", ""),
    edit("number levels 4", "number levels"), edit("number levels 4", "number levels many"),
    edit("number levels 4\n", ""), edit("number levels 4", "number levels 5"),
    edit("number groups 4", "number groups 0"), edit("number groups 4", "number groups 3"),
    edit("number attention_heads 1", "number attention_heads 0"),
    edit(CONV, CONV.replace(" 0 ", " 217000 ")), edit(CONV, CONV.replace(" 0 ", " -64 ")),
    edit(CONV, CONV.replace(" 0 ", " 18446744073709551615 ")), edit(CONV, CONV.replace(" 0 ", " 1e3 ")),
    edit(CONV, CONV.replace("3456", "3460")), edit(CONV, CONV.replace("3456", "0")),
    edit(CONV, CONV.replace("16 6 3 3", "6 16 3 3")), edit(CONV, CONV.replace("4 16 6 3 3", "3 96 3 3")),
    edit(CONV, CONV.replace("16 6 3 3", "16 6 3")), edit(CONV, CONV.replace("16 6 3 3", "16 6 -3 -3")),
    edit(CONV, CONV.replace("3456 plain 4 16 6 3 3", "0 plain 4 65536 65536 65536 65536")),
    edit(CONV, CONV.replace("plain", "transposed")), edit(CONV, CONV.replace("f32", "f64")),
    edit(CONV, CONV.replace("vae_decoder.weights", "nothing.weights")),
    edit(CONV, CONV.replace("vae_decoder.weights", "../graphs/vae_decoder.weights")),
    edit(CONV, CONV.replace("vae_decoder.weights", ".")),
    edit(f"tensor {CONV}\n", ""), edit("decoder.conv_in.weight", "decoder.conv_in.wait"),
])  # fmt: skip
def test_a_damaged_index_is_refused(spoil: Callable[[bytes], bytes], folder: Path) -> None:
    path = folder / "graphs" / "vae_decoder.layers"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(EngineError) as caught:
        NativeEngine(folder, 1).load("vae_decoder")
    assert caught.value.code == "engine-load"


@pytest.mark.parametrize(("name", "spoil"), [
    ("pose_encoder", edit("number blocks 6", "number blocks 0")),
    ("pose_encoder", edit("number blocks 6", "number blocks -1")),
    ("pose_encoder", edit("number blocks 6", "number blocks 1")),
    ("denoiser", edit("number heads.0 2", "number heads.0 0")),
    ("denoiser", edit("number width.0 32", "number width.0 9")),
    ("text_encoder", edit("number tokens 16", "number tokens 1000000")),
    ("text_encoder", edit("number heads 2", "number heads 0")),
])  # fmt: skip
def test_numbers_that_do_not_fit_the_tensors_are_refused(
    name: str, spoil: Callable[[bytes], bytes], folder: Path, graph_inputs: Make
) -> None:
    path = folder / "graphs" / f"{name}.layers"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(EngineError, match=r"engine-(load|run)"):
        run(NativeEngine(folder, 1), name, graph_inputs(name, 2, 1, 8, 8))


def test_weights_that_are_cut_short_are_refused(folder: Path) -> None:
    path = folder / "graphs" / "denoiser.weights"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(EngineError) as caught:
        NativeEngine(folder, 1).load("denoiser")
    assert caught.value.code == "engine-load"
    assert "export the bundle again" in caught.value.message


def test_what_is_used_after_close_is_refused(tiny_bundle: Path, graph_inputs: Make) -> None:
    engine = NativeEngine(tiny_bundle, threads=1)
    graph, inputs = engine.load("vae_decoder"), graph_inputs("vae_decoder", 1, 1, 5, 5)
    buffer = engine.upload(inputs["latents"])
    engine.close()
    engine.close()
    for use in (
        lambda: graph.run({"latents": buffer}),
        lambda: engine.load("vae_decoder"),
        lambda: engine.upload(inputs["latents"]),
        lambda: engine.download(buffer),
    ):
        with pytest.raises(EngineError, match="was closed"):
            use()


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in Linux's /proc")
def test_the_engines_threads_end_with_the_last_tensor(tiny_bundle: Path, graph_inputs: Make) -> None:
    before = threads()
    engine = NativeEngine(tiny_bundle, threads=3)
    kept = engine.load("vae_decoder").run(
        {key: engine.upload(value) for key, value in graph_inputs("vae_decoder", 1, 1, 5, 5).items()}
    )
    assert threads() == before + 2
    engine.close()
    assert threads() == before + 2
    kept.clear()
    assert threads() == before


def test_a_program_may_end_with_everything_open(tiny_bundle: Path) -> None:
    program = f"""
import numpy as np
from pathlib import Path
from posecrafter.runtime.engines.native import NativeEngine
class Kept:
    pass
kept = [Kept() for _ in range(3)]
for one in kept:
    one.engine = NativeEngine(Path({str(tiny_bundle)!r}), 2)
    one.made = one.engine.load("vae_decoder").run({{"latents": one.engine.upload(np.zeros((1, 6, 5, 5), np.float32))}})
    one.itself = one
kept[0].engine.close()
del kept[1]
print("end")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


def test_two_engines_run_at_once(tiny_bundle: Path, graph_inputs: Make) -> None:
    inputs = graph_inputs("denoiser", 3, 2, 8, 8)
    engines = [NativeEngine(tiny_bundle, threads=2) for _ in range(2)]
    expected = run(engines[0], "denoiser", inputs)["eps"]
    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(lambda engine: [run(engine, "denoiser", inputs)["eps"] for _ in range(5)], engines):
            np.testing.assert_array_equal(found, [expected] * 5)


def test_a_bundle_without_layers_is_refused_with_the_cure(folder: Path) -> None:
    (folder / "graphs" / "denoiser.layers").unlink()
    with pytest.raises(EngineError) as caught:
        open_engine("native", folder)
    assert caught.value.code == "engine-load"
    assert "denoiser.layers is missing" in caught.value.message
    assert "exported by an older release" in caught.value.message
    assert "--engine auto takes openvino or onnxruntime" in caught.value.message
    (folder / "graphs" / "vae_decoder.layers").unlink()
    with pytest.raises(EngineError, match=r"vae_decoder.layers is missing"):
        NativeEngine(folder).load("vae_decoder")


def test_a_library_that_is_not_there_or_another_is_refused(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "find_spec", lambda name: None)
    with pytest.raises(EngineError) as caught:
        open_engine("native", tiny_bundle)
    assert caught.value.code == "engine-missing"
    assert "it needs GCC 12 or clang" in caught.value.message
    assert "--engine auto takes openvino or onnxruntime" in caught.value.message
    monkeypatch.setattr(adapter, "library_file", lambda: tmp_path / "_native.so")
    (tmp_path / "_native.so").write_bytes(b"not a library")
    with pytest.raises(EngineError, match="is not the engine 'native'") as caught:
        NativeEngine(tiny_bundle)
    assert caught.value.code == "engine-missing"


def test_a_precision_that_is_none_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(EngineError, match="int4") as caught:
        NativeEngine(tiny_bundle, precision="int4")
    assert caught.value.code == "engine-precision"
