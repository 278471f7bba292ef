"""Every malformed bundle is refused by C++ with the code that Python gives, before an engine sees it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from posecrafter.errors import PoseCrafterError
from posecrafter.files import sha256_of
from posecrafter.runtime import Bundle

HERE = Path(__file__).parent


def edit_manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "manifest.json"
        values = json.loads(path.read_text())
        change(values)
        path.write_text(json.dumps(values))

    return apply


def replace(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Another content of a file that the manifest vouches for."""

    def apply(folder: Path) -> None:
        path = folder / name
        path.write_bytes(change(path.read_bytes()))
        entry = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        edit_manifest(lambda values: values["files"].update({name: entry}))(folder)

    return apply


def list_file(name: str) -> Callable[[Path], None]:
    return edit_manifest(lambda values: values["files"].update({name: {"bytes": 1, "sha256": "0" * 64}}))


def shortened_header(data: bytes) -> bytes:
    return (len(data) * 2).to_bytes(8, "little") + data[8:]


def retyped(data: bytes) -> bytes:
    """Halves told as a type that numpy lacks."""
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].replace(b'"F16"', b'"BF16"')
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def overlapping(data: bytes) -> bytes:
    return data.replace(b"[120,240]", b"[119,239]")


LATENTS, TEXT, POSES = "person/latents.safetensors", "person/text.safetensors", "person/poses.json"
DENOISER = "graphs/denoiser.onnx"
MALFORMED: dict[str, Callable[[Path], Any]] = {
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "empty manifest": lambda folder: (folder / "manifest.json").write_text(""),
    "a list": lambda folder: (folder / "manifest.json").write_text("[]"),
    "half a manifest": lambda folder: (folder / "manifest.json").write_text('{"format": "posecrafter-bundle", '),
    "another format": edit_manifest(lambda v: v.update(format="something")),
    "latin-1": lambda folder: (folder / "manifest.json").write_bytes(b'{"format": "\xe9"}'),
    "no version": edit_manifest(lambda v: v.pop("format_version")),
    "a newer version": edit_manifest(lambda v: v.update(format_version=99)),
    "version 0": edit_manifest(lambda v: v.update(format_version=0)),
    "a version that is text": edit_manifest(lambda v: v.update(format_version="1")),
    **{
        f"no {name}": edit_manifest(lambda v, name=name: v.pop(name))  # type: ignore[misc]
        for name in ("precision", "width", "latents", "text", "schedule", "defaults", "files", "fps", "network_width")
    },
    "a version that is true": edit_manifest(lambda v: v.update(format_version=True)),
    "a precision that is a number": edit_manifest(lambda v: v.update(precision=32)),
    "a rate that is a text": edit_manifest(lambda v: v.update(fps="25")),
    "training frames that are true": edit_manifest(lambda v: v.update(training_frames=True)),
    "four steps and a point": edit_manifest(lambda v: v["defaults"].update(steps=4.0)),
    "no steps": edit_manifest(lambda v: v["defaults"].update(steps=0)),
    "no iterations": edit_manifest(lambda v: v["defaults"].update(inversion_iterations=0)),
    "a mean kept by a number": edit_manifest(lambda v: v["defaults"].update(keep_mean=1)),
    "too many iterations": edit_manifest(lambda v: v["defaults"].update(inversion_iterations=17)),
    "sampling steps below none": edit_manifest(lambda v: v["defaults"].update(sampling_steps=-1)),
    "sampling steps that are true": edit_manifest(lambda v: v["defaults"].update(sampling_steps=True)),
    "too many channels": edit_manifest(lambda v: v["latents"].update(channels=5000)),
    "a side that is too long": edit_manifest(lambda v: v["defaults"].update(width=16385)),
    "a prompt that is none": edit_manifest(lambda v: v["text"].update(prompt=None)),
    "an offset that is a text": edit_manifest(lambda v: v["schedule"].update(steps_offset="1")),
    "no frame beside the reference": edit_manifest(lambda v: v["frames"].update(max=1)),
    "infinite guidance": edit_manifest(lambda v: v["defaults"].update(guidance=math.inf)),
    "a number that is none": edit_manifest(lambda v: v.update(parity={"denoiser": math.nan})),
    "a number too large": lambda folder: (folder / "manifest.json").write_text('{"format": 1e999}'),
    "lists in lists in lists": lambda folder: (folder / "manifest.json").write_text("[" * 100_000),
    "another kind": edit_manifest(lambda v: v.update(kind="borrowed")),
    "parity as a list": edit_manifest(lambda v: v.update(parity=[])),
    "provenance as a text": edit_manifest(lambda v: v.update(provenance="base")),
    "shared inputs as a list": edit_manifest(lambda v: v.update(shared=[])),
    "a graph's shared inputs as a text": edit_manifest(lambda v: v.update(shared={"denoiser": "to_q"})),
    "a shared shape as a text": edit_manifest(lambda v: v.update(shared={"denoiser": {"to_q": "4x4"}})),
    "a shared shape of texts": edit_manifest(lambda v: v.update(shared={"denoiser": {"to_q": ["4", "4"]}})),
    "a shared shape below nothing": edit_manifest(lambda v: v.update(shared={"denoiser": {"to_q": [4, -1]}})),
    "a shared shape beyond everything": edit_manifest(lambda v: v.update(shared={"denoiser": {"to_q": [2**31]}})),
    "an unknown field": edit_manifest(lambda v: v.update(colour="red")),
    "an unknown field inside": edit_manifest(lambda v: v["latents"].update(colour="red")),
    "no factor": edit_manifest(lambda v: v["latents"].pop("factor")),
    "no height among the defaults": edit_manifest(lambda v: v["defaults"].pop("height")),
    "a range that is a number": edit_manifest(lambda v: v.update(frames=3)),
    "files as a list": edit_manifest(lambda v: v.update(files=[])),
    "a size below nothing": edit_manifest(lambda v: v["files"][DENOISER].update(bytes=-1)),
    "a hash that is a number": edit_manifest(lambda v: v["files"][DENOISER].update(sha256=0)),
    "a file without a hash": edit_manifest(lambda v: v["files"][DENOISER].pop("sha256")),
    "a missing graph": lambda folder: (folder / DENOISER).unlink(),
    "a folder for a file": lambda folder: ((folder / DENOISER).unlink(), (folder / DENOISER).mkdir()),
    "an altered graph": lambda folder: (folder / DENOISER).write_bytes(b"grapH " * 100),
    "a longer graph": lambda folder: (folder / DENOISER).write_bytes(b"graph " * 101),
    "poses not listed": edit_manifest(lambda v: v["files"].pop(POSES)),
    "a shared bundle's weights not listed": edit_manifest(lambda v: v.update(kind="shared")),
    "a planted graph": lambda folder: (folder / "graphs/denoiser.cpu.onnx").write_bytes(b"graph"),
    "planted weights": lambda folder: (folder / "person/weights.safetensors").write_bytes(b"weights"),
    "a file planted deeper": lambda folder: (
        (folder / "person/a/b").mkdir(parents=True),
        (folder / "person/a/b/c").touch(),
    ),
    "latents not listed": edit_manifest(lambda v: v["files"].pop(LATENTS)),
    "a path above": list_file("../secret"),
    "an absolute path": list_file("/etc/hostname"),
    "a path that leaves and returns": list_file("graphs/../../elsewhere/x"),
    "a link out of the bundle": lambda folder: (
        (folder / DENOISER).unlink(),
        (folder / DENOISER).symlink_to("/etc/hostname"),
    ),
    "latents cut short": replace(LATENTS, lambda data: data[:-2]),
    "latents and a byte": replace(LATENTS, lambda data: data + b"x"),
    "a header longer than the file": replace(LATENTS, shortened_header),
    "no header": replace(LATENTS, lambda data: data[:5]),
    "a header of noise": replace(LATENTS, lambda data: data[:9] + b"\xff" + data[10:]),
    "latents under another name": replace(LATENTS, lambda data: data.replace(b'"latents"', b'"natents"')),
    "another dtype": replace(LATENTS, lambda data: data.replace(b'"F16"', b'"F32"')),
    "latents of bfloat16": replace(LATENTS, retyped),
    "another shape": replace(LATENTS, lambda data: data.replace(b"[4,4,8,8]", b"[4,4,4,8]")),
    "a transposed shape": replace(LATENTS, lambda data: data.replace(b"[4,4,8,8]", b"[4,8,4,8]")),
    "tensors that overlap": replace(TEXT, overlapping),
    "no prompt": replace(TEXT, lambda data: data.replace(b'"prompt"', b'"qrompt"')),
    "more training frames": edit_manifest(lambda v: v.update(training_frames=5)),
    "another size": edit_manifest(lambda v: v["defaults"].update(width=128)),
    "other text": edit_manifest(lambda v: v["text"].update(tokens=6)),
    "poses that are no JSON": replace(POSES, lambda data: data[:-20]),
    "one pose less": replace(POSES, lambda data: b"[" + data.split(b",\n", 1)[1]),
}


def python_code(folder: Path) -> str:
    try:
        Bundle.open(folder)
    except PoseCrafterError as error:
        return error.code
    return ""


def test_a_whole_bundle_opens_in_both(library: Any, write_bundle: Any, tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bundle")
    assert (python_code(folder), library.open(folder)) == ("", "")


def test_files_of_the_system_and_beside_the_sealed_folders_are_no_matter(
    library: Any, write_bundle: Any, tmp_path: Path
) -> None:
    folder = write_bundle(tmp_path / "bundle")
    (folder / "engines").mkdir()
    for name in ("graphs/.hidden", "engines/notes.txt", "readme.txt"):
        (folder / name).touch()
    assert (python_code(folder), library.open(folder)) == ("", "")


@pytest.mark.parametrize("path", sorted((HERE / "fuzz/seeds/manifest").iterdir()), ids=lambda path: path.stem)
def test_a_manifest_that_the_fuzzer_starts_from_has_one_code_in_both(path: Path, library: Any, tmp_path: Path) -> None:
    shutil.copy(path, tmp_path / "manifest.json")
    expected = python_code(tmp_path)
    assert expected
    assert library.open(tmp_path) == expected


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_bundle_has_one_code_in_both(name: str, library: Any, write_bundle: Any, tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bundle")
    MALFORMED[name](folder)
    expected = python_code(folder)
    assert expected
    assert library.open(folder) == expected


def test_a_version_of_lists_deeper_than_the_stack_is_refused(native: Any, tmp_path: Path) -> None:
    """Python's own limit refuses it earlier, as no JSON that it can read."""
    version = "[" * 200_000 + "]" * 200_000
    (tmp_path / "manifest.json").write_text(f'{{"format": "posecrafter-bundle", "format_version": {version}}}')
    assert native.dump(tmp_path)[0] == "bundle-format"
    assert python_code(tmp_path) == "bundle-manifest"


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_graph_that_returns_halves_is_refused_and_not_read_as_floats(
    engine: str, native: Any, toy_bundle: Path, tmp_path: Path
) -> None:
    """As floats they would reach beyond their end."""
    folder = Path(shutil.copytree(toy_bundle, tmp_path / "bundle"))
    path = folder / "graphs/vae_decoder.onnx"
    model = onnx.load(path)
    frames = model.graph.output[0]
    frames.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    model.graph.node[-1].output[0] = "wide"
    model.graph.node.append(onnx.helper.make_node("Cast", ["wide"], [frames.name], to=onnx.TensorProto.FLOAT16))
    onnx.save(model, path)
    replace("graphs/vae_decoder.onnx", lambda data: data)(folder)
    (tmp_path / "out").mkdir()
    words = {"poses": folder / "person/poses.json", "out": tmp_path / "out", "threads": 1}
    code, message = native.dump(folder, engine=engine, library=getattr(native, engine), **words)
    assert (code, "float32" in message) == ("engine-run", True)
