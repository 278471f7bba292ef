"""The ahead-of-time build, in a process of its own: every kernel compiles for every target without a GPU."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from posecrafter.kernels import KERNELS
from posecrafter.kernels.aot import builds, main
from posecrafter.kernels.compile import MOST_STACK, SHARED, TARGETS, mixed_halves
from posecrafter.kernels.tolerances import TOLERANCES

HOPPER = "key_frame_attention_d(40|160)_|temporal_attention_(d40_f16|d160_f128)_|norm_.*_c320_"
HOPPER += "|guidance_step_b2_|warp_latents_bilinear_|temporal_projection_c(64_f16|256_f32)_"
ELSEWHERE = "key_frame_attention_d80_|norm_measure_c320_|temporal_projection_c128_f32_"


def build(*commands: list[str]) -> None:
    """Run the command with each list of words, in one process that compiles."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    program = f"from posecrafter.kernels.aot import main\nfor words in {commands!r}:\n    assert main(words) == 0"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr


def entries(folder: Path, target: int) -> list[dict[str, Any]]:
    return json.loads((folder / f"kernels-sm_{target}" / "kernels.json").read_text())["kernels"]


def check_entries(folder: Path, target: int) -> None:
    for entry in entries(folder, target):
        code = (folder / f"kernels-sm_{target}" / entry["file"]).read_bytes()
        assert hashlib.sha256(code).hexdigest() == entry["sha256"]
        assert code[:4] == b"\x7fELF"
        assert entry["entry"].encode() in code
        assert entry["shared_bytes"] <= SHARED[target]
        assert entry["stack_bytes"] <= (0 if target == 90 else MOST_STACK), entry
        assert entry["registers"] <= 255
        assert entry["trailing_pointers"] in (0, 1, 2)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """hopper/: most kernels as cubins; text/: two as PTX; others/: three for every other target; bundle/: one."""
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "bundle").mkdir()
    (folder / "bundle/manifest.json").write_text("{}")
    others = [word for target in TARGETS if target != 90 for word in ("--target", str(target))]
    build(
        [str(folder / "hopper"), "--dtype", "fp16", "--only", HOPPER],
        [str(folder / "text"), "--form", "ptx", "--dtype", "fp16", "--only", "attention_d40(_f16)?_"],
        [str(folder / "others"), "--dtype", "fp16", "--only", ELSEWHERE, *others],
        [str(folder / "bundle"), "--only", "guidance_step_b1_fp16"],
    )
    return folder


def test_kernels_for_hopper_fit_the_device_and_spill_nothing(built: Path) -> None:
    assert len(entries(built / "hopper", 90)) == 11
    check_entries(built / "hopper", 90)


@pytest.mark.parametrize("target", [target for target in TARGETS if target != 90])
def test_kernels_for_another_target_fit_it_and_spill_no_more_than_the_bound(target: int, built: Path) -> None:
    assert len(entries(built / "others", target)) == 3
    check_entries(built / "others", target)


def test_what_a_host_reads_is_enough_to_launch(built: Path) -> None:
    entry = next(entry for entry in entries(built / "hopper", 90) if entry["name"] == "key_frame_attention_d40_fp16")
    assert [argument["type"] for argument in entry["arguments"]] == ["*fp16"] * 3 + ["i32"] * 2 + ["*fp16"]
    words = {**entry["constants"], **{argument["name"]: 0 for argument in entry["arguments"]}}
    for axis in entry["grid"]:
        used = {word for word in axis.replace("(", " ").replace(")", " ").split() if word.isidentifier()}
        assert used - {"ceil", "prompts"} <= set(words)
    assert entry["threads"] == 128
    assert (entry["constants"]["D0"], entry["constants"]["D1"]) == (32, 16)


def test_attention_for_hopper_is_warpgroup_products_and_wide_loads(built: Path) -> None:
    texts = {path.stem: path.read_text() for path in (built / "text/kernels-sm_90").glob("*.ptx")}
    assert "wgmma.mma_async" in texts["key_frame_attention_d40_fp16"]
    temporal = texts["temporal_attention_d40_f16_fp16"]
    assert "mma.sync" in temporal
    loads = [
        line.split()[1 if line.strip().startswith("@") else 0] for line in temporal.splitlines() if "ld.global" in line
    ]
    assert set(loads) == {"ld.global.v4.b32"}, "every load of a thread is 16 bytes"


def test_every_kernel_of_the_registry_is_built_for_every_target() -> None:
    for target in TARGETS:
        names = [build.name for build in builds(target)]
        assert len(names) == len(set(names))
        for kernel in KERNELS:
            assert any(name.startswith(kernel.removesuffix("_silu")) for name in names)


@pytest.mark.parametrize(
    ("words", "code"),
    [(["--target", "70"], "kernel-target"), (["--only", "nothing"], "kernel-none"), ([], "kernel-build")],
)
def test_what_cannot_be_built_is_one_line_and_leaves_nothing(
    words: list[str], code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last case runs in this process, whose kernels are interpreted."""
    assert main([str(tmp_path / "out"), *words]) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith(f"error[{code}]: ")
    assert not list(tmp_path.rglob("*.*"))


def test_a_bundle_gets_its_kernels_among_its_engines(built: Path) -> None:
    assert [entry["name"] for entry in entries(built / "bundle/engines", 90)] == ["guidance_step_b1_fp16"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_ptx_without_the_trailing_pointers_is_launched_by_the_driver_and_is_the_truth() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    words = [sys.executable, "-P", str(Path(__file__).parent / "bare_launch.py")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    distances = json.loads(done.stdout)
    assert len(distances) == 30
    for name, distance in distances.items():
        assert distance <= TOLERANCES[torch.float16 if name.endswith("fp16") else torch.bfloat16].relative


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_compiles_for_every_target(target: int, tmp_path: Path) -> None:
    build([str(tmp_path), "--target", str(target)])
    assert len(entries(tmp_path, target)) == len(builds(target))
    check_entries(tmp_path, target)


def test_an_address_of_which_one_half_is_taken_twice_is_found() -> None:
    right = """
        /*0010*/  UIADD3 UR18, UP0, UR7, 0x20, URZ ;
        /*0020*/  UMOV UR7, URZ ;
        /*0030*/  UIADD3.X UR19, UR7, -0x3ffffff0, URZ, UP0, !UPT ;
        /*0040*/  UIADD3 UR4, UP1, UR4, 0x20, URZ ;
        /*0050*/  UIADD3.X UR5, UR5, 0x40000040, URZ, UP1, !UPT ;
    """
    assert mixed_halves(right) == []
    wrong = right.replace("/*0020*/  UMOV UR7, URZ ;", "/*0020*/  UMOV UR6, UR4 ;")
    assert mixed_halves(wrong) == ["UIADD3.X UR19, UR7, -0x3ffffff0, URZ, UP0, !UPT ;"]
