"""People on a shared bundle: C++ renders each as Python does, comes back to the bit, and refuses what Python refuses.

The bundle is the toy one, with four matrices of its half-precision denoiser as a person's; the pocket base's people are
in test_same_result.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from posecrafter.errors import PoseCrafterError
from posecrafter.files import read_json, write_json
from posecrafter.manifest import Manifest
from posecrafter.pose import read_poses, write_poses
from posecrafter.runtime import Request, Session
from posecrafter.runtime.person import FOLDER, WEIGHTS, Pack

INPUTS = ("to_q", "to_k", "to_v", "out")
PERSONAL = ("poses.json", "latents.safetensors", "text.safetensors")

Change = Callable[[Path], Any]


@pytest.fixture(scope="module")
def shared(toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shared fp16 bundle with its own person, "ann" and "bob". Not to be changed."""
    folder = Path(shutil.copytree(toy_bundle, tmp_path_factory.mktemp("shared") / "bundle"))
    shapes = {"denoiser": make_inputs(folder / "graphs/denoiser.onnx", folder / "person" / WEIGHTS)}
    manifest = replace(Manifest.read(folder), kind="shared", shared=shapes, provenance={"base_sha256": "base"})
    for seed, name in enumerate(("ann", "bob"), start=1):
        write_pack(folder / FOLDER / name, folder, manifest, name, seed)
    files = {name: entry for name, entry in Manifest.entries(folder).items() if not name.startswith(FOLDER)}
    replace(manifest, files=files).write(folder)
    return folder


def make_inputs(graph: Path, weights: Path) -> dict[str, list[int]]:
    """Move `INPUTS` out of a graph into a weights file; returns their shapes."""
    model = onnx.load(graph)
    own = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in INPUTS]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    for name in INPUTS:
        told = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT16, own[name].shape)
        model.graph.input.append(told)
    onnx.save(model, graph)
    save_file({f"denoiser/{name}": own[name] for name in INPUTS}, weights)
    return {name: list(own[name].shape) for name in INPUTS}


def write_pack(folder: Path, bundle: Path, manifest: Manifest, name: str, seed: int) -> None:
    """Somebody with other matrices, latents and words, and two training frames instead of three."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    shapes = manifest.shared["denoiser"]
    own = {f"denoiser/{key}": random.standard_normal(shape) / shape[1] ** 0.5 for key, shape in shapes.items()}
    save_file({key: array.astype(np.float16) for key, array in own.items()}, folder / WEIGHTS)
    write_poses(folder / "poses.json", read_poses(bundle / "person/poses.json")[seed - 1 : seed + 1])
    save_file({"latents": random.standard_normal((2, 4, 4, 5)).astype(np.float16)}, folder / "latents.safetensors")
    text = {key: random.standard_normal((5, 6)).astype(np.float32) for key in ("prompt", "empty")}
    save_file(text, folder / "text.safetensors")
    files = Manifest.entries(folder)
    Pack("base", training_frames=2, fps=12.5, prompt=name, width=40, height=32, files=files).write(folder)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_each_person_renders_as_in_python_and_comes_back_to_the_bit(
    engine: str, native: Any, shared: Path, tmp_path: Path
) -> None:
    poses = shared / "person/poses.json"
    elsewhere = Path(shutil.copytree(shared / FOLDER / "bob", tmp_path / "bob"))
    people = ["", "ann", elsewhere, "ann", ""]
    others = native.render_people(people, shared, poses, tmp_path / "native", engine, threads=1)
    with Session.open(shared, engine=engine, threads=1) as session:
        request = Request(poses=read_poses(poses))
        for person, other in zip(people, others, strict=True):
            session.load_person(str(person) or None)
            result = session.render(request)
            assert result.plan.reference == other["plan"]["reference_frame"]
            assert np.abs(other["frames"].astype(int) - result.frames).max() <= 1, person
    for first, again in ((0, 4), (1, 3)):
        np.testing.assert_array_equal(others[first]["latents"], others[again]["latents"])
    for one, another in ((0, 1), (1, 2), (0, 2)):
        assert np.abs(others[one]["frames"].astype(int) - others[another]["frames"]).max() > 20


def test_a_persons_weights_are_bound_once_and_not_at_every_step(
    native: Any, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU binding copies, so this is what a step does not pay for."""
    monkeypatch.setenv("COUNTED", str(native.onnxruntime))
    monkeypatch.setenv("COUNTS", str(tmp_path / "counts"))
    counting = replace(native, onnxruntime=native.build / "tests/native/counting_onnxruntime.so")
    poses, steps = shared / "person/poses.json", 3
    people = ["ann", "bob", "ann"]
    counted = counting.render_people(people, shared, poses, tmp_path / "counted", "onnxruntime", threads=1, steps=steps)
    lines = (tmp_path / "counts").read_text().splitlines()
    times = {name: int(number) for name, number in (line.split() for line in lines)}
    assert [times[name] for name in INPUTS] == [len(people)] * len(INPUTS)
    # Whoever is rendered again is not inverted again.
    assert times["x"] == times["timestep"] == steps * (2 + 2 + 1)
    plain = native.render_people(people, shared, poses, tmp_path / "plain", "onnxruntime", threads=1, steps=steps)
    for one, other in zip(counted, plain, strict=True):
        np.testing.assert_array_equal(one["latents"], other["latents"])


def reseal(pack: Path, **changes: Any) -> None:
    """Write a pack's record anew, so that only what was spoilt is wrong."""
    entries = {name: entry for name, entry in Manifest.entries(pack).items() if name != "person.json"}
    plain = {name: {"bytes": entry.bytes, "sha256": entry.sha256} for name, entry in entries.items()}
    write_json(pack / "person.json", {**read_json(pack / "person.json"), "files": plain, **changes})


def weights(change: Callable[[dict[str, np.ndarray]], Any]) -> Change:
    def apply(pack: Path) -> None:
        tensors = load_file(pack / WEIGHTS)
        change(tensors)
        save_file(tensors, pack / WEIGHTS)
        reseal(pack)

    return apply


def record(change: Callable[[dict[str, Any]], Any]) -> Change:
    def apply(pack: Path) -> None:
        values = read_json(pack / "person.json")
        change(values)
        write_json(pack / "person.json", values)

    return apply


def altered(name: str, data: bytes) -> Change:
    return lambda pack: (pack / name).write_bytes(data)


def vouched(name: str, data: bytes) -> Change:
    return lambda pack: ((pack / name).write_bytes(data), reseal(pack))


HALF = np.float16
SPOILT: dict[str, tuple[str, Change]] = {
    **{f"no {name}": ("pack-missing", lambda pack, name=name: (pack / name).unlink()) for name in (WEIGHTS, *PERSONAL)},  # type: ignore[misc]
    "no record": ("pack-missing", lambda pack: (pack / "person.json").unlink()),
    "weights not listed": ("pack-missing", record(lambda values: values["files"].pop(WEIGHTS))),
    "another weights file": ("pack-hash", altered(WEIGHTS, b"other bytes")),
    "other poses": ("pack-hash", altered("poses.json", b"{}")),
    "other text of the same size": (
        "pack-hash",
        lambda pack: altered("text.safetensors", b"x" * (pack / "text.safetensors").stat().st_size)(pack),
    ),
    "half a record": ("pack-format", altered("person.json", b"{")),
    "a record of noise": ("pack-format", altered("person.json", b"\xff\xfe{}")),
    "a list": ("pack-format", altered("person.json", b"[]")),
    "another format": ("pack-format", record(lambda values: values.update(format="posecrafter-pack-9"))),
    "no format": ("pack-format", record(lambda values: values.pop("format"))),
    "no prompt": ("pack-format", record(lambda values: values.pop("prompt"))),
    "an unknown field": ("pack-format", record(lambda values: values.update(colour="red"))),
    "files as a list": ("pack-format", record(lambda values: values.update(files=[]))),
    "a file without a hash": ("pack-format", record(lambda values: values["files"][WEIGHTS].pop("sha256"))),
    "another base": ("pack-base", lambda pack: reseal(pack, base_sha256="0" * 64)),
    "a tensor less": ("pack-weights", weights(lambda tensors: tensors.pop("denoiser/to_q"))),
    "a tensor more": ("pack-weights", weights(lambda tensors: tensors.update(extra=np.zeros(3, HALF)))),
    "another shape": (
        "pack-weights",
        weights(lambda tensors: tensors.update({"denoiser/out": np.zeros((3, 3), HALF)})),
    ),
    "another type": (
        "pack-weights",
        weights(lambda tensors: tensors.update({"denoiser/out": np.zeros((4, 32, 1, 1), np.float32)})),
    ),
    "not a number": ("pack-weights", weights(lambda tensors: tensors["denoiser/to_v"].fill(np.nan))),
    "infinite": ("pack-weights", weights(lambda tensors: tensors["denoiser/to_v"].fill(-np.inf))),
    "weights that are no tensors": ("pack-weights", vouched(WEIGHTS, b"other bytes")),
    "more training frames": ("bundle-person", lambda pack: reseal(pack, training_frames=3)),
    "another size": ("bundle-person", lambda pack: reseal(pack, width=48)),
    "poses that are no JSON": ("poses-json", vouched("poses.json", b"{")),
}


def python_code(bundle: Path, person: str | Path) -> str:
    """The code with which Python refuses a bundle or its person, or ""."""
    try:
        with Session.open(bundle, engine="onnxruntime", threads=1) as session:
            session.load_person(person)
    except PoseCrafterError as error:
        return error.code
    return ""


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_pack_has_one_code_in_both(name: str, library: Any, shared: Path, tmp_path: Path) -> None:
    pack = Path(shutil.copytree(shared / FOLDER / "ann", tmp_path / "ann"))
    assert library.open(shared, pack) == ""
    code, change = SPOILT[name]
    change(pack)
    assert python_code(shared, pack) == code
    assert library.open(shared, pack) == code


@pytest.mark.parametrize("person", ["zoe", "", ".", "..", "persons/ann", "/nowhere"])
def test_who_is_not_there_is_missing_in_both(person: str, library: Any, shared: Path) -> None:
    assert python_code(shared, person) == library.open(shared, person) == "pack-missing"


def test_a_merged_bundle_takes_nobody_else_in_either(library: Any, toy_bundle: Path, shared: Path) -> None:
    pack = shared / FOLDER / "ann"
    assert python_code(toy_bundle, pack) == library.open(toy_bundle, pack) == "bundle-merged"


@pytest.mark.parametrize("name", ["a tensor less", "not a number", "weights that are no tensors"])
def test_a_shared_bundle_whose_own_weights_are_spoilt_does_not_open(
    name: str, library: Any, shared: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(shared, tmp_path / "bundle"))
    person = bundle / "person"
    (person / "person.json").write_bytes((bundle / FOLDER / "ann/person.json").read_bytes())
    SPOILT[name][1](person)
    (person / "person.json").unlink()
    files = {entry: told for entry, told in Manifest.entries(bundle).items() if not entry.startswith(FOLDER)}
    replace(Manifest.read(bundle), files=files).write(bundle)
    assert python_code(bundle, "ann") == library.open(bundle) == "pack-weights"
