"""What `cmake --install` leaves is a package that another project finds, and a host program that runs."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import posecrafter

HERE = Path(__file__).parent


def run(*command: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def prefix(native: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("prefix")
    done = run("cmake", "--install", native.build, "--prefix", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def expected(native: Any, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Frames of the training poses, by an engine of the library in its build folder."""
    poses, folder = tiny_bundle / "person/poses.json", tmp_path_factory.mktemp("expected")
    return {
        engine: native.render(tiny_bundle, poses, folder / engine, engine)["frames"]
        for engine in ("native", "onnxruntime")
    }


def build(source: Path, prefix: Path, folder: Path) -> Path:
    """Build another project against the installed package."""
    for command in (
        ("cmake", "-S", source, "-B", folder, f"-DCMAKE_PREFIX_PATH={prefix}"),
        ("cmake", "--build", folder, "--parallel", "2"),
    ):
        done = run(*command)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_a_program_in_c_builds_against_the_installed_package(prefix: Path, tmp_path: Path) -> None:
    told = run(build(HERE / "consumer", prefix, tmp_path / "build") / "consumer")
    assert told.stdout.split() == [posecrafter.__version__, "2", "bundle-missing"]


def test_the_manuals_program_builds_against_the_installed_package_and_renders(
    prefix: Path, tiny_bundle: Path, expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """By the engine that needs no other library, where it is not told which."""
    manual = (HERE.parents[1] / "docs/embedding.md").read_text()
    for name, kind in (("app.cpp", "cpp"), ("CMakeLists.txt", "cmake")):
        (tmp_path / name).write_text(manual.split(f"```{kind}\n")[1].split("```")[0])
    app = build(tmp_path, prefix, tmp_path / "build") / "app"
    command = [app, tiny_bundle, tiny_bundle / "person/poses.json"]
    done = subprocess.run([str(word) for word in command], capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    frames = expected["native"]
    np.testing.assert_array_equal(np.frombuffer(done.stdout, np.uint8).reshape(frames.shape), frames)


def test_the_library_shows_its_c_interface_and_nothing_else(prefix: Path) -> None:
    (library,) = prefix.glob("lib*/**/libposecrafter.so")
    done = run("nm", "--dynamic", "--defined-only", "--format=just-symbols", library)
    assert done.returncode == 0, done.stderr
    names = done.stdout.split()
    assert "pc_open" in names
    assert [name for name in names if not name.startswith("pc_")] == []


def test_the_host_writes_png_files_and_latencies(
    native: Any, prefix: Path, tiny_bundle: Path, expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    words = (
        "--engine-library",
        native.onnxruntime,
        "--engine",
        "onnxruntime",
        "--out",
        tmp_path / "out",
        "--repeat",
        3,
    )
    done = run(prefix / "bin/posecrafter-host", tiny_bundle, tiny_bundle / "person/poses.json", *words)
    assert done.returncode == 0, done.stderr
    assert "sample" in done.stderr
    assert "p50" in done.stdout
    assert "peak memory" in done.stdout
    files = sorted((tmp_path / "out").iterdir())
    frames = np.stack([cv2.imread(str(file))[..., ::-1] for file in files])
    np.testing.assert_array_equal(frames, expected["onnxruntime"])


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("usage", ["--colour", "red"]),
        ("usage", ["--steps", "many"]),
        ("steps-range", ["--steps", "0"]),
        ("sampling-steps-range", ["--steps", "2", "--sampling-steps", "3"]),
        ("inversion", ["--inversion", "upside-down"]),
        ("engine-unknown", ["--engine", "abacus"]),
        ("engine-missing", ["--engine", "onnxruntime", "--engine-library", "/nowhere.so"]),
    ],
)
def test_the_host_refuses_in_one_line(code: str, words: list[str], native: Any, tiny_bundle: Path) -> None:
    engine = ["--engine", "onnxruntime", "--engine-library", native.onnxruntime]
    poses = tiny_bundle / "person/poses.json"
    done = run(native.build / "bin/posecrafter-host", tiny_bundle, poses, *engine, *words)
    assert done.returncode == 2
    assert f"error[{code}]: " in done.stderr


def test_where_no_engine_opens_the_reason_of_each_is_told(native: Any, tiny_bundle: Path) -> None:
    words = ["--engine-library", "/nowhere.so"]
    done = run(native.build / "bin/posecrafter-host", tiny_bundle, tiny_bundle / "person/poses.json", *words)
    assert done.returncode == 2
    assert "error[engine-missing]: " in done.stderr
    for engine in ("onnxruntime: ", "openvino: "):
        assert engine in done.stderr


def told(native: Any, bundle: Path, *words: Any) -> str:
    """What posecrafter-host prints and refuses of a bundle's training poses."""
    done = run(native.build / "bin/posecrafter-host", bundle, bundle / "person/poses.json", "--steps", 1, *words)
    return done.stdout + done.stderr


def test_auto_takes_native_where_the_bundle_has_layers_and_nothing_else_is_named(
    native: Any, tiny_bundle: Path, shared_bundle: Path
) -> None:
    assert "engine native on cpu" in told(native, tiny_bundle)
    assert "engine native on cpu" in told(native, shared_bundle)
    assert "engine native on cpu" in told(native, tiny_bundle, "--device", "cpu", "--precision", "fp32")
    assert "engine onnxruntime on cpu" in told(native, tiny_bundle, "--engine-library", native.onnxruntime)
    assert "native: " not in told(native, tiny_bundle, "--device", "cuda")


def test_a_bundle_without_layers_is_for_the_other_engines(native: Any, toy_bundle: Path) -> None:
    told_of_all = told(native, toy_bundle)
    assert "native: " not in told_of_all
    assert "onnxruntime: " in told_of_all
    refusal = told(native, toy_bundle, "--engine", "native")
    assert "error[engine-load]: " in refusal
    assert "export it again, or take onnxruntime" in refusal


@pytest.mark.parametrize(
    ("code", "words"),
    [("engine-device", {"device": "cuda"}), ("engine-precision", {"precision": "int8"})],
)
def test_the_native_engine_refuses_what_it_has_not(
    code: str, words: dict[str, str], native: Any, tiny_bundle: Path
) -> None:
    assert native.dump(tiny_bundle, engine="native", **words)[0] == code
