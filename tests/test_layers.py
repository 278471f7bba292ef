"""The layers of the code base: who imports whom, and that the runtime stays lean."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEVEL = {
    "posecrafter": 0,
    "posecrafter.pose": 0,
    "posecrafter.kernels": 1,
    "posecrafter.runtime": 1,
    "posecrafter.finetune": 2,
    "posecrafter.export": 3,
    "posecrafter.serve": 4,
    "posecrafter.bench": 4,
}
FOLDER = {"posecrafter": "posecrafter"} | {name: name.split(".")[1] for name in LEVEL if "." in name}
THIRD_PARTY = {
    "posecrafter": {"numpy", "av", "cv2"},
    "posecrafter.pose": {"numpy", "cv2"},
    "posecrafter.kernels": {"torch", "triton", "numpy"},
    "posecrafter.runtime": {"numpy", "safetensors", "tokenizers"},
    "posecrafter.finetune": {"torch", "diffusers", "transformers", "safetensors", "numpy", "huggingface_hub"},
    "posecrafter.export": {
        "torch", "onnx", "onnxscript", "onnx_ir", "polygraphy", "numpy", "safetensors", "diffusers", "transformers",
        "tokenizers", "openvino",
    },
    "posecrafter.serve": {"fastapi", "numpy", "prometheus_client", "pydantic", "starlette", "uvicorn"},
    "posecrafter.bench": {
        "numpy", "cv2", "skimage", "matplotlib", "torch", "openvino", "onnxruntime", "triton", "diffusers", "xformers",
        "safetensors",
    },
}  # fmt: skip
ENGINE_FILES = {"onnxruntime.py": {"onnxruntime"}, "openvino.py": {"openvino"}, "torch.py": {"torch"}}
NEVER_IN_RUNTIME = ("torch", "triton", "diffusers", "transformers", "onnx")


def python_files(package: str) -> list[Path]:
    """The files of a package's folder; the command line and other environments' scripts have rules of their own."""
    files = (ROOT / FOLDER[package]).rglob("*.py")
    return [file for file in files if not {"cli", "extractors", "__main__.py"} & set(file.parts)]


def imported_modules(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} uses a relative import; name the package"
            found.add(node.module or "")
    return found


def package_of(module: str) -> str:
    parts = module.split(".")
    name = ".".join(parts[:2])
    return name if name in LEVEL else parts[0]


@pytest.mark.parametrize("package", LEVEL)
def test_imports_point_down_only(package: str) -> None:
    files = python_files(package)
    assert files
    for file in files:
        for module in imported_modules(file):
            target = package_of(module)
            if target in LEVEL and target != package:
                allowed = LEVEL[target] < LEVEL[package] or (package == "posecrafter.pose" and target == "posecrafter")
                assert allowed, f"{file.relative_to(ROOT)} imports {module}"


def test_folders_of_the_bench_import_nothing_from_each_other() -> None:
    folders = {path.parent.name for path in (ROOT / "bench").glob("*/__init__.py")}
    assert folders
    for name in folders:
        others = tuple(f"posecrafter.bench.{other}" for other in folders - {name})
        for file in (ROOT / "bench" / name).rglob("*.py"):
            for module in imported_modules(file):
                assert not module.startswith(others), f"{file.relative_to(ROOT)} imports {module}"


@pytest.mark.parametrize("package", LEVEL)
def test_third_party_imports_are_those_of_the_design(package: str) -> None:
    for file in python_files(package):
        allowed = THIRD_PARTY[package] | ENGINE_FILES.get(file.name if "engines" in file.parts else "", set())
        for module in imported_modules(file):
            top = module.split(".")[0]
            known = top == "posecrafter" or top in sys.stdlib_module_names
            assert known or top in allowed, f"{file.relative_to(ROOT)} imports {top}"


def test_no_environment_variable_is_read_below_the_command_line() -> None:
    for package in LEVEL:
        for file in python_files(package):
            text = file.read_text(encoding="utf-8")
            assert "os.environ" not in text, file
            assert "getenv" not in text, file


def test_runtime_runs_without_torch_triton_diffusers_transformers_and_onnx(tiny_bundle: Path, tmp_path: Path) -> None:
    program = f"""
import sys
import numpy as np
from posecrafter.pose import read_poses
from posecrafter.runtime import Request, Session
with Session.open({str(tiny_bundle)!r}) as session:
    result = session.render(Request(poses=session.bundle.poses[:2], steps=2, prompt="another person"))
assert result.frames.shape[0] == 2 and result.frames.dtype == np.uint8
print(sorted(set({NEVER_IN_RUNTIME!r}) & set(sys.modules)))
"""
    home = {**os.environ, "HOME": str(tmp_path)}  # where figures of engines are kept
    done = subprocess.run([sys.executable, "-c", program], env=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    assert list(tmp_path.glob(".cache/posecrafter/engines/*.json"))


def test_importing_the_runtime_loads_no_engine_and_no_video_library() -> None:
    """What would take it beyond 0.3 s."""
    heavy = ("onnxruntime", "openvino", "av", "tensorrt", *NEVER_IN_RUNTIME)
    program = f"import sys, posecrafter.runtime; print(sorted(set({heavy!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
