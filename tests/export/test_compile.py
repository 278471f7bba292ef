from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from posecrafter.errors import PoseCrafterError
from posecrafter.export import compile as compile_module
from posecrafter.export.compile import GRAPHS, CompileOptions, check_bundle, compile_bundle
from posecrafter.export.profiles import make_profiles
from posecrafter.files import read_json, sha256_of, write_json
from posecrafter.manifest import Manifest
from posecrafter.runtime import Bundle, Request, Session
from posecrafter.runtime.engines import openvino
from posecrafter.runtime.engines.built import Built, Profile

RTX = "tensorrt-rtx"


@pytest.fixture(scope="module")
def compiled(tensorrt_rtx: Any, toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy bundle with TensorRT-RTX plans for 9 frames. Shared: not to be changed."""
    bundle = Path(shutil.copytree(toy_bundle, tmp_path_factory.mktemp("compiled") / "bundle"))
    assert compile_bundle(bundle, RTX, CompileOptions(frames=(9,))).built
    return bundle


@pytest.fixture
def bundle(compiled: Path, tmp_path: Path) -> Path:
    """A copy of it, to spoil."""
    return Path(shutil.copytree(compiled, tmp_path / "bundle"))


def engines(bundle: Path) -> list[str]:
    """What lies in engines/, locks aside."""
    return sorted(p.name for p in (bundle / "engines").iterdir() if p.suffix != ".lock")


def refusal(bundle: Path, engine: str = RTX, **options: Any) -> PoseCrafterError:
    with pytest.raises(PoseCrafterError) as caught:
        compile_bundle(bundle, engine, CompileOptions(**options))
    return caught.value


def test_plans_are_built_without_a_gpu_and_recorded(compiled: Path) -> None:
    folder = compiled / "engines" / f"{RTX}-any"
    record = Built.read(folder)
    assert (record.engine, record.target, record.precision) == (RTX, "any", "fp16")
    assert record.version.count(".") == 3
    assert tuple(record.graphs) == GRAPHS
    for graph, (part,) in record.graphs.items():
        path = folder / part.file
        assert (path.stat().st_size, sha256_of(path)) == (part.bytes, part.sha256)
        assert part.profiles == make_profiles(Manifest.read(compiled), graph, (9,))
        assert part.seconds > 0
        assert part.layers > 0
    assert record.graphs["denoiser"][0].fused == 1
    assert {path.name for path in folder.iterdir()} == {"engine.json", *(f"{graph}.plan" for graph in GRAPHS)}


def test_a_second_compile_with_nothing_changed_does_nothing(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_module, "build_plan", None)
    before = {path: path.stat().st_mtime_ns for path in (bundle / "engines" / f"{RTX}-any").iterdir()}
    assert not compile_bundle(bundle, RTX, CompileOptions(frames=(9,))).built
    assert {path: path.stat().st_mtime_ns for path in (bundle / "engines" / f"{RTX}-any").iterdir()} == before


@pytest.mark.parametrize("change", ["frames", "accumulate", "plan", "record", "version", "graph"])
def test_whatever_changed_is_built_again(change: str, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, options = bundle / "engines" / f"{RTX}-any", {"frames": (9,)}
    if change in ("frames", "accumulate"):
        options |= {"frames": (9, 17)} if change == "frames" else {"accumulate": "fp16"}
    elif change == "plan":
        data = (folder / "pose_encoder.plan").read_bytes()
        (folder / "pose_encoder.plan").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif change == "record":
        (folder / "engine.json").write_text("{")
    elif change == "version":
        record = (folder / "engine.json").read_text()
        (folder / "engine.json").write_text(record.replace(Built.read(folder).version, "1.0.0.0"))
    else:
        (bundle / "graphs" / "text_encoder.onnx").write_bytes(
            (bundle / "graphs" / "text_encoder.onnx").read_bytes() + b"\x52\x00"  # an empty field that is skipped
        )
        manifest = Manifest.read(bundle)
        entries = {name: entry for name, entry in Manifest.entries(bundle).items() if not name.startswith("engines/")}
        object.__setattr__(manifest, "files", entries)
        manifest.write(bundle)

    class Reached(Exception):
        pass

    def reached(*_: Any) -> None:
        raise Reached

    monkeypatch.setattr(compile_module, "build_plan", reached)
    with pytest.raises(Reached):
        compile_bundle(bundle, RTX, CompileOptions(**options))


def test_a_bundle_with_engines_still_opens_and_renders(compiled: Path) -> None:
    assert not any(name.startswith("engines/") for name in Bundle.open(compiled).manifest.files)
    with Session.open(compiled, "onnxruntime") as session:
        assert session.render(Request(poses=session.bundle.poses[:1])).frames.shape == (1, 32, 40, 3)


def test_a_failed_compile_leaves_the_older_engine(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    before = Built.read(bundle / "engines" / f"{RTX}-any")
    monkeypatch.setattr(compile_module, "build_plan", full)
    assert refusal(bundle).code == "disk-full"
    assert engines(bundle) == [f"{RTX}-any"]
    assert Built.read(bundle / "engines" / f"{RTX}-any") == before


@pytest.mark.usefixtures("tensorrt_rtx")
def test_progress_rises_to_a_hundred_for_every_graph_and_a_cancel_stops_between_steps(
    toy_bundle: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(toy_bundle, tmp_path / "bundle"))
    seen: dict[str, list[int]] = {}

    def progress(stage: str, done: int, total: int, detail: str = "") -> None:
        assert total == 100
        seen.setdefault(stage, []).append(done)

    def cancel() -> bool:
        return "build vae_decoder" in seen and seen["build vae_decoder"][-1] > 50

    with pytest.raises(PoseCrafterError) as caught:
        compile_bundle(bundle, RTX, progress=progress, cancel=cancel)
    assert caught.value.code == "cancelled"
    assert list(seen) == ["build text_encoder", "build pose_encoder", "build vae_decoder"]
    for steps in seen.values():
        assert steps == sorted(steps)
        assert len(set(steps)) > 10
    assert seen["build pose_encoder"][-1] == 100
    assert seen["build vae_decoder"][-1] < 100
    assert engines(bundle) == []


def test_of_two_compiles_at_once_one_is_refused(bundle: Path) -> None:
    program = f"""
from pathlib import Path
from posecrafter.export import compile

with compile._alone(Path({str(bundle / "engines" / f"{RTX}-any")!r})):
    print("held", flush=True)
    input()
"""
    words = [sys.executable, "-c", program]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert refusal(bundle).code == "compile-busy"
        other.communicate("\n")
    assert not compile_bundle(bundle, RTX, CompileOptions(frames=(9,))).built


@pytest.mark.usefixtures("tensorrt_rtx")
def test_a_killed_compile_leaves_a_usable_bundle_and_the_next_one_cleans_up(toy_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(toy_bundle, tmp_path / "bundle"))
    words = [sys.executable, "-m", "posecrafter", "compile", str(bundle), "--engine", RTX]
    child = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            if list((bundle / "engines").glob(f".{RTX}-any-*/text_encoder.plan")):
                break
            time.sleep(0.05)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    assert len(engines(bundle)) == 1
    with Session.open(bundle, "onnxruntime") as session:
        session.plan(Request(poses=session.bundle.poses[:1]))
    with compile_module._alone(bundle / "engines" / f"{RTX}-any"):
        assert engines(bundle) == []


def test_an_engine_moved_aside_by_a_killed_compile_is_put_back(bundle: Path) -> None:
    folder = bundle / "engines" / f"{RTX}-any"
    aside = folder.parent / f".{folder.name}-old-x"
    aside.mkdir()
    folder.rename(aside / folder.name)
    assert not compile_bundle(bundle, RTX, CompileOptions(frames=(9,))).built
    assert engines(bundle) == [folder.name]


@pytest.mark.parametrize(("code", "engine", "options", "words"), [
    ("engine-unknown", "abacus", {}, "abacus"),
    ("engine-missing", "tensorrt", {}, "pip install"),
    ("compile-range", RTX, {"frames": (40,)}, "1..33"),
    ("compile-range", RTX, {"size": (40, 100)}, "height"),
    ("compile-target", RTX, {"target": "sm80,sm90"}, "sm89"),
    ("compile-precision", RTX, {"precision": "fp32"}, "posecrafter export --precision fp32"),
    ("compile-target", "openvino", {"target": "sm80"}, "CPU"),
    ("engine-precision", "openvino", {"precision": "fp16"}, "fp32"),
])  # fmt: skip
def test_bad_requests_are_refused_with_the_cure(
    code: str, engine: str, options: dict[str, Any], words: str, bundle: Path
) -> None:
    before = engines(bundle)
    error = refusal(bundle, engine, **options)
    assert error.code == code
    assert words in error.message
    assert engines(bundle) == before


@pytest.mark.parametrize("options", [{"precision": "int4"}, {"accumulate": "fp8"}])
def test_options_that_are_none_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(PoseCrafterError) as caught:
        CompileOptions(**options)
    assert caught.value.code == "options-range"


def test_an_altered_graph_is_refused_before_anything_reads_it(bundle: Path) -> None:
    path = bundle / "graphs" / "denoiser.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    assert refusal(bundle).code == "bundle-hash"
    assert refusal(bundle, "openvino").code == "bundle-hash"


@pytest.mark.usefixtures("tensorrt_rtx")
def test_check_tells_what_fuses_and_builds_nothing(toy_bundle: Path) -> None:
    told = check_bundle(toy_bundle, RTX)
    assert told["denoiser"] == {"fused": 1, "decomposed": 0}
    assert not (toy_bundle / "engines").exists()


@pytest.mark.usefixtures("tensorrt_rtx")
def test_targets_are_built_into_folders_of_their_own(toy_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(toy_bundle, tmp_path / "bundle"))
    compiled = compile_bundle(bundle, RTX, CompileOptions(target="sm120,sm89", precision="bf16", frames=(2,)))
    assert compiled.folder.name == f"{RTX}-sm89+sm120"
    assert (compiled.record.target, compiled.record.precision) == ("sm89+sm120", "bf16")


def test_profiles_are_static_for_named_frames_and_span_the_manifest_otherwise(compiled: Path) -> None:
    manifest = Manifest.read(compiled)
    place = {"h": (4, 4, 4), "w": (5, 5, 5)}
    inversion = Profile({"frames": (1, 1, 1), **place, "prompts": (1, 1, 1)})
    assert make_profiles(manifest, "denoiser", (9, 17)) == (
        inversion,
        Profile({"frames": (9, 9, 9), **place, "prompts": (1, 2, 2)}),
        Profile({"frames": (17, 17, 17), **place, "prompts": (1, 2, 2)}),
    )
    assert make_profiles(manifest, "denoiser")[1] == Profile({"frames": (1, 17, 33), **place, "prompts": (1, 2, 2)})
    assert make_profiles(manifest, "pose_encoder", (9,), (64, 16))[1] == Profile(
        {"frames": (9, 9, 9), "height": (16, 16, 16), "width": (64, 64, 64)}
    )


def test_frames_beyond_the_range_name_the_option_of_export_and_too_few_do_not(toy_bundle: Path) -> None:
    manifest = Manifest.read(toy_bundle)
    for count, cure in ((40, True), (0, False)):
        with pytest.raises(PoseCrafterError) as caught:
            make_profiles(manifest, "denoiser", (count,))
        assert caught.value.code == "compile-range"
        assert (f"export again with --max-frames {count}" in caught.value.message) == cure


def test_a_size_of_the_bundle_outside_its_own_range_names_no_option_that_nobody_gave(toy_bundle: Path) -> None:
    manifest = Manifest.read(toy_bundle)
    manifest = replace(manifest, defaults=replace(manifest.defaults, width=128))
    with pytest.raises(PoseCrafterError, match=r"own size 128 is outside the bundle's 16\.\.64") as caught:
        make_profiles(manifest, "denoiser")
    assert caught.value.code == "compile-range"
    assert "export it again" in caught.value.message
    assert "--size" not in caught.value.message


def test_openvino_refuses_a_shared_bundle_before_it_compiles_anything(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Path(shutil.copytree(toy_bundle, tmp_path / "bundle"))
    manifest = Manifest.read(bundle)
    replace(manifest, kind="shared", shared={"denoiser": {"into": [32, 4, 1, 1]}}).write(bundle)
    monkeypatch.setattr(openvino, "OpenVinoEngine", None)
    error = refusal(bundle, "openvino", frames=(3,))
    assert error.code == "bundle-shared"
    assert "without --shared" in error.message
    assert not (bundle / "engines").exists()


def test_openvino_leaves_out_a_graph_that_the_runtime_compiles_for_any_size(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Path(shutil.copytree(toy_bundle, tmp_path / "bundle"))
    sizes = {graph: (bundle / "graphs" / f"{graph}.onnx").stat().st_size for graph in GRAPHS}
    largest = max(sizes, key=lambda graph: sizes[graph])
    monkeypatch.setattr(openvino, "_STATIC_BYTES", sizes[largest] - 1)
    compiled = compile_bundle(bundle, "openvino", CompileOptions(frames=(3,)))
    assert set(compiled.record.graphs) == {*GRAPHS} - {largest}
    assert not any(part.file.startswith(largest) for part in compiled.record.files)
    assert not compile_bundle(bundle, "openvino", CompileOptions(frames=(3,))).built
    with Session.open(bundle, "openvino") as session:
        assert session.render(Request(poses=session.bundle.poses[:2])).frames.shape == (2, 32, 40, 3)
    monkeypatch.setattr(openvino, "_STATIC_BYTES", 0)
    error = refusal(bundle, "openvino", frames=(3,))
    assert error.code == "compile-weights"
    assert Built.read(compiled.folder) == compiled.record


def test_openvino_models_are_kept_imported_and_refused_when_altered(toy_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(toy_bundle, tmp_path / "bundle"))
    compiled = compile_bundle(bundle, "openvino", CompileOptions(frames=(3,)))
    assert compiled.built
    assert max(compiled.record.parity.values()) < 5e-3
    assert not compile_bundle(bundle, "openvino", CompileOptions(frames=(3,))).built
    request = Request(poses=Bundle.open(bundle).poses[:2])
    frames = {}
    for folder in (toy_bundle, bundle):
        with Session.open(folder, "openvino") as session:
            frames[folder] = session.render(request).frames
    assert (frames[toy_bundle] == frames[bundle]).all()
    part = next(p for p in compiled.record.graphs["denoiser"] if p.profiles[0].sizes["frames"][0] == 3)
    path = compiled.folder / part.file
    path.write_bytes(path.read_bytes()[:-1] + b"\x00\x00")
    with Session.open(bundle, "openvino") as session, pytest.raises(PoseCrafterError) as caught:
        session.render(request)
    assert caught.value.code == "plan-altered"
    assert "posecrafter compile" in caught.value.message
    record = compiled.folder / "engine.json"
    write_json(record, {**read_json(record), "version": "2020.1"})
    with Session.open(bundle, "openvino") as session:
        assert (session.render(request).frames == frames[bundle]).all()
