"""Many people on one set of graphs: each renders as PyTorch renders him, and coming back changes no bit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from posecrafter.errors import BundleError, PoseCrafterError
from posecrafter.export.export import ExportOptions, exported_copy
from posecrafter.export.graphs import make_graphs
from posecrafter.export.person import export_person
from posecrafter.export.reference import open_reference
from posecrafter.export.run import Run
from posecrafter.export.shared import pack_weights
from posecrafter.files import read_json, write_json
from posecrafter.manifest import FileEntry, Manifest
from posecrafter.runtime import Bundle, Request, Session
from posecrafter.runtime.low_rank import BASE, DOWN, UP, LowRank
from posecrafter.runtime.measure import measure
from posecrafter.runtime.person import WEIGHTS, Pack, read_person


@pytest.fixture
def copied(shared_bundle: Path, tmp_path: Path) -> Path:
    """A copy of it, to spoil."""
    return Path(shutil.copytree(shared_bundle, tmp_path / "bundle"))


def loading(bundle: Path, person: str | Path = "b") -> BundleError:
    with Session.open(bundle, "onnxruntime", threads=1) as session, pytest.raises(BundleError) as caught:
        session.load_person(person)
    return caught.value


def reseal(pack: Path, **changes: Any) -> None:
    """Write a pack's record anew, so that only what was spoilt is wrong."""
    files = {name: FileEntry(e.bytes, e.sha256) for name, e in Manifest.entries(pack).items() if name != "person.json"}
    record = read_json(pack / "person.json")
    plain = {name: {"bytes": entry.bytes, "sha256": entry.sha256} for name, entry in files.items()}
    write_json(pack / "person.json", {**record, "files": plain, **changes})


def spoil_weights(pack: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    tensors = load_file(pack / WEIGHTS)
    change(tensors)
    save_file(tensors, pack / WEIGHTS)
    reseal(pack)


@pytest.mark.parametrize("engine", ["onnxruntime", "native"])
def test_four_people_interleaved_render_as_pytorch_does_and_come_back_to_the_bit(
    engine: str, shared_bundle: Path, people: dict[str, Path]
) -> None:
    with Session.open(shared_bundle, engine, threads=1) as session:
        request = Request(poses=session.bundle.poses[:2], steps=2)
        first: dict[str, np.ndarray] = {}
        for name in "abcadcbbda":
            session.load_person(None if name == "a" else name)
            frames = session.render(request).frames
            np.testing.assert_array_equal(first.setdefault(name, frames), frames)
    for name, run in people.items():
        with open_reference(run) as reference:
            expected = reference.render(request).frames.astype(int)
        assert np.abs(first[name] - expected).max() <= 1, name
    assert np.abs(first["a"].astype(int) - first["b"]).max() > 20


def test_engines_are_measured_on_a_shared_bundle_with_its_own_persons_weights(shared_bundle: Path) -> None:
    found = measure(Bundle.open(shared_bundle), [("onnxruntime", None), ("openvino", None)], threads=1)
    assert found.failed == {}
    onnxruntime, openvino = found.figures
    assert onnxruntime.error == 0 < openvino.error < 1e-4
    assert min(onnxruntime.seconds, openvino.seconds) > 0


def test_openvino_renders_a_shared_bundle_too(shared_bundle: Path) -> None:
    frames = []
    for engine in ("openvino", "onnxruntime"):
        with Session.open(shared_bundle, engine, threads=1) as session:
            session.load_person("b")
            frames.append(session.render(Request(poses=session.bundle.poses[:1], steps=1)).frames.astype(int))
    assert np.abs(frames[0] - frames[1]).max() <= 1


def test_the_persons_weights_are_inputs_behind_the_graphs_own_and_no_longer_in_the_graph(shared_bundle: Path) -> None:
    import onnx

    manifest = Manifest.read(shared_bundle)
    assert manifest.kind == "shared"
    assert set(manifest.shared) == {"denoiser"}
    model = onnx.load(shared_bundle / "graphs" / "denoiser.onnx", load_external_data=False).graph
    names = [value.name for value in model.input]
    assert names[:8] == ["x", "timestep", "a", "b", "text", "weight", "pose_features", "control_scale"]
    assert names[8:] == list(manifest.shared["denoiser"])
    assert all(".attn1.to_out.0." in name or ".attn_temp." in name for name in names[8:])
    assert not set(names[8:]) & {tensor.name for tensor in model.initializer}


def test_a_pack_lies_anywhere_and_holds_its_parity(shared_bundle: Path, tmp_path: Path) -> None:
    pack = Path(shutil.copytree(shared_bundle / "persons" / "b", tmp_path / "elsewhere"))
    parity = Pack.read(pack).parity
    assert parity["denoiser"] <= parity["bound_graph"] == 1e-4
    with Session.open(shared_bundle, "onnxruntime", threads=1) as session:
        request = Request(poses=session.bundle.poses[:1], steps=1)
        session.load_person(pack)
        found = session.render(request).frames
        session.load_person("b")
        np.testing.assert_array_equal(session.render(request).frames, found)


def test_a_person_is_uploaded_once(shared_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Session.open(shared_bundle, "onnxruntime", threads=1) as session:
        session.load_person("b")
        monkeypatch.setattr(session.engine, "upload", None)
        session.load_person(None)
        session.load_person("b")


def test_a_pack_of_another_base_is_refused(copied: Path) -> None:
    reseal(copied / "persons" / "b", base_sha256="0" * 64)
    error = loading(copied)
    assert error.code == "pack-base"
    assert "000000000000" in error.message


@pytest.mark.parametrize(("words", "change"), [
    ("lacks denoiser/", lambda tensors: tensors.pop(next(iter(tensors)))),
    ("do not know: denoiser/extra", lambda tensors: tensors.update({"denoiser/extra": np.zeros(3, np.float32)})),
    ("the graphs take", lambda tensors: tensors.update({next(iter(tensors)): np.zeros((3, 3), np.float32)})),
    ("not finite", lambda tensors: next(iter(tensors.values())).fill(np.nan)),
])  # fmt: skip
def test_weights_that_are_missing_extra_misshapen_or_nan_are_refused(words: str, change: Any, copied: Path) -> None:
    spoil_weights(copied / "persons" / "b", change)
    error = loading(copied)
    assert error.code == "pack-weights"
    assert words in error.message


@pytest.mark.parametrize(("code", "name", "data"), [
    ("pack-hash", WEIGHTS, b"other bytes"), ("pack-hash", "poses.json", b"{}"), ("pack-missing", WEIGHTS, None),
    ("pack-format", "person.json", b"{"), ("pack-format", "person.json", b'{"format": "posecrafter-pack-9"}'),
    ("pack-missing", "person.json", None),
])  # fmt: skip
def test_a_pack_that_was_altered_is_refused_before_it_is_parsed(
    code: str, name: str, data: bytes | None, copied: Path
) -> None:
    path = copied / "persons" / "b" / name
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)
    assert loading(copied).code == code


@pytest.mark.parametrize("name", ["latents.safetensors", "text.safetensors"])
def test_a_vouched_file_that_holds_no_tensors_is_refused(name: str, copied: Path) -> None:
    pack = copied / "persons" / "b"
    (pack / name).write_bytes(b"no tensors")
    reseal(pack)
    error = loading(copied)
    assert error.code == "bundle-person"
    assert name in error.message


def test_an_unknown_person_is_told_who_is_there(shared_bundle: Path) -> None:
    error = loading(shared_bundle, "zoe")
    assert error.code == "pack-missing"
    assert "it has: b, c, d" in error.message


def test_a_merged_bundle_takes_no_other_person(tiny_bundle: Path, people: dict[str, Path]) -> None:
    assert loading(tiny_bundle).code == "bundle-merged"
    with pytest.raises(PoseCrafterError) as caught:
        export_person(people["b"], tiny_bundle, "b")
    assert caught.value.code == "bundle-merged"


@pytest.mark.parametrize(("code", "name"), [("bundle-exists", "b"), ("person-name", "../b"), ("base-differs", "e")])
def test_a_person_that_cannot_be_added_leaves_the_bundle_as_it_was(
    code: str, name: str, shared_bundle: Path, people: dict[str, Path], tiny_run: Path
) -> None:
    before = sorted(shared_bundle.rglob("*"))
    with pytest.raises(PoseCrafterError) as caught:
        export_person(tiny_run if code == "base-differs" else people["b"], shared_bundle, name)
    assert caught.value.code == code
    assert sorted(shared_bundle.rglob("*")) == before


def test_a_low_rank_pack_is_thinner_and_loads_as_the_matrices_that_pytorch_merges(
    shared_bundle: Path, people: dict[str, Path]
) -> None:
    folder = shared_bundle / "persons"
    assert Pack.read(folder / "d").low_rank == LowRank(rank=4, scale=2.0)
    assert (folder / "d" / WEIGHTS).stat().st_size < 0.6 * (folder / "b" / WEIGHTS).stat().st_size
    module = exported_copy(make_graphs(Run.read(people["d"]).load())["denoiser"].module, ExportOptions())
    expected = pack_weights({"denoiser": module}, Manifest.read(shared_bundle).shared)
    _, found = read_person(Bundle.open(shared_bundle), folder / "d")
    assert {f"denoiser/{name}" for name in found["denoiser"]} == expected.keys()
    for name, array in found["denoiser"].items():
        np.testing.assert_array_max_ulp(array, expected[f"denoiser/{name}"].numpy(), maxulp=1)


def test_a_reader_of_full_matrices_alone_finds_another_format_in_a_low_rank_pack(shared_bundle: Path) -> None:
    formats = [read_json(shared_bundle / "persons" / name / "person.json")["format"] for name in "bd"]
    assert formats == ["posecrafter-pack-1", "posecrafter-pack-low-rank-1"]
    assert "low_rank" not in read_json(shared_bundle / "persons" / "b" / "person.json")


def _first(tensors: dict[str, np.ndarray], end: str) -> str:
    return next(name for name in sorted(tensors) if name.endswith(end))


@pytest.mark.parametrize(("words", "change"), [
    ("lacks denoiser/denoiser.", lambda t: t.pop(_first(t, UP))),
    ("has factors", lambda t: t.update({_first(t, UP): np.zeros((3, 3), np.float32)})),
    ("has factors", lambda t: t.update({_first(t, DOWN): t[_first(t, DOWN)].astype(np.int32)})),
    ("not finite", lambda t: t.update({_first(t, DOWN): t[_first(t, DOWN)] * np.float16(np.nan)})),
    ("twice", lambda t: t.update({_first(t, UP).replace(UP, ".weight"): np.zeros((32, 32), np.float32)})),
    ("which the graphs do not", lambda t: t.update({f"denoiser/x{end}": np.zeros((4, 4), np.float16)
                                                    for end in (UP, DOWN)})),
    ("lacks denoiser/", lambda t: t.pop(_first(t, ".attn_temp.to_out.0.weight"))),
])  # fmt: skip
def test_spoilt_factors_are_refused(words: str, change: Any, copied: Path) -> None:
    spoil_weights(copied / "persons" / "d", change)
    error = loading(copied, "d")
    assert error.code == "pack-weights"
    assert words in error.message


@pytest.mark.parametrize("changes", [
    {"low_rank": {"rank": 0, "scale": 1.0}}, {"low_rank": {"rank": 4}}, {"low_rank": {"rank": 4, "scale": None}},
    {"format": "posecrafter-pack-1"},
])  # fmt: skip
def test_a_low_rank_record_that_is_none_is_refused(changes: dict[str, Any], copied: Path) -> None:
    reseal(copied / "persons" / "d", **changes)
    assert loading(copied, "d").code == "pack-format"


def test_a_bundle_without_the_bases_matrices_refuses_low_rank_packs_and_names_both_cures(copied: Path) -> None:
    manifest = Manifest.read(copied)
    (copied / BASE).unlink()
    files = {name: entry for name, entry in manifest.files.items() if name != BASE}
    replace(manifest, files=files).write(copied)
    error = loading(copied, "d")
    assert error.code == "bundle-file-missing"
    assert "export the bundle again" in error.message
    assert "--full-matrices" in error.message
