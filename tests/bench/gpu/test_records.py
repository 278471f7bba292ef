"""The GPU records: the script runs from a bare checkout, checks before it times, and tables what it recorded."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need Triton, which is made for Linux")

from posecrafter.bench.gpu import checks, parts
from posecrafter.bench.gpu import records as command
from posecrafter.bench.gpu.checks import check_kernels, launch, launches
from posecrafter.bench.gpu.kernels import _compare, cases, check_case
from posecrafter.bench.gpu.network import TINY, edited, evaluated, make_rig, motions_of
from posecrafter.bench.gpu.parts import Bench, frames
from posecrafter.bench.gpu.table import BEGIN, END, tables, write_table
from posecrafter.errors import EngineError
from posecrafter.kernels import KERNELS

ROOT = Path(__file__).parents[3]
ABSENT = ("cv2", "av", "diffusers", "transformers", "accelerate", "onnx", "onnxscript", "onnxruntime", "tokenizers")
ABSENT += ("skimage", "typer", "rich", "xformers", "matplotlib", "openvino")


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dry run from a checkout, without the installed package and whatever a GPU machine does not have."""
    folder = tmp_path_factory.mktemp("records")
    program = f"""
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__ + str(finder)]
sys.modules.update(dict.fromkeys({ABSENT!r}))
sys.argv = ["from_checkout.py", "posecrafter.bench.gpu", "--dry", "--minutes", "60", "--out", {str(folder)!r},
            "--table", {str(folder / "table.md")!r}, "--parts", {",".join([*command.PARTS, "check"])!r}]
import runpy
runpy.run_path({str(ROOT / "bench/from_checkout.py")!r}, run_name="__main__")
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    assert "every check holds" in done.stderr
    return folder


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "gpu.jsonl").read_text().splitlines()]


def test_a_dry_run_from_a_checkout_records_every_part_with_where_and_when(dry: Path) -> None:
    found = records(dry)
    assert {record["part"] for record in found} == {"ceilings", *command.PARTS} - {"compiled"}
    for record in found:
        assert record["dry"] is True
        assert {"device", "versions", "commit", "date"} <= set(record)
    kernels = [record for record in found if record["part"] == "kernels"]
    assert [record["kernel"] for record in kernels] == list(KERNELS)
    assert all(record["best_rival"] in record["rivals_ms"] for record in kernels)
    variants = [record["variant"] for record in found if record["part"] == "pipeline"]
    assert variants == ["published", "stock", "kernels"]
    assert not [record for record in found if "broken" in record]
    ratios = [record["times_faster"] for record in found if record["part"] == "pipeline"]
    assert [ratio["than"] for ratio in ratios] == ["published"] * 3
    assert ratios[0]["both"] == 1


def test_the_table_says_that_a_dry_run_measures_nothing(dry: Path) -> None:
    text = (dry / "table.md").read_text()
    assert "these figures say nothing" in text
    assert text.count("| kernels |") == 3  # a step, a pass of the frames' part, the pipeline


def test_the_table_replaces_itself_and_leaves_the_rest_of_a_document(dry: Path, tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text("# Mine\n\nbefore\n", encoding="utf-8")
    for _ in range(2):
        write_table(dry / "gpu.jsonl", document)
    text = document.read_text()
    assert text.startswith("# Mine\n\nbefore\n")
    assert text.count(BEGIN) == text.count(END) == 1
    assert tables(records(dry)) in text


def test_nothing_is_timed_on_red(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def red(*_: object) -> Iterator[dict[str, Any]]:
        yield {"kernel": "temporal_attention", "holds": False}

    monkeypatch.setattr(command, "check_kernels", red)
    monkeypatch.setattr(command, "check_networks", lambda *_: iter(()))
    assert command.main(["--dry", "--out", str(tmp_path / "out")]) == 1
    assert "error[gpu-red]: 1 checks failed; nothing was timed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_part_that_breaks_keeps_its_lines_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks(bench: Bench) -> Iterator[dict[str, Any]]:
        yield {"case": "before"}
        raise MemoryError("no room")

    for name in ("check_kernels", "check_networks"):
        monkeypatch.setattr(command, name, lambda *_: iter(()))
    monkeypatch.setattr(command, "PARTS", {"first": breaks, "second": lambda bench: iter([{"case": "after"}])})
    words = ["--dry", "--parts", "first,second", "--out", str(tmp_path), "--table", str(tmp_path / "table.md")]
    assert command.main(words) == 1
    assert "error[gpu-broken]: first did not end" in capsys.readouterr().err
    told = [(r["part"], r.get("case"), r.get("broken")) for r in records(tmp_path)]
    assert told[1:] == [("first", "before", None), ("first", None, "MemoryError: no room"), ("second", "after", None)]


def test_an_error_that_is_not_a_number_is_the_worst() -> None:
    """Whichever of two outputs holds it."""
    good, bad = torch.ones(4), torch.tensor([1.0, float("nan"), 1.0, 1.0])
    for found in ((good, bad), (bad, good)):
        result = _compare(KERNELS["guidance_step"], {}, torch.float16, found, [torch.ones(4)] * 2)
        assert not result["holds"]


def test_an_unknown_part_or_a_missing_gpu_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--dry", "--parts", "everything"]) == 2
    assert "error[parts]: there is no part 'everything'" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert command.main(["--out", str(tmp_path)]) == 2
        assert "error[device-missing]" in capsys.readouterr().err


def test_the_published_loop_computes_what_the_plain_network_does() -> None:
    """It is the rival of every end-to-end figure, so it must be the same function, and differ in how."""
    device, results = torch.device("cpu"), {}
    for variant in ("published", "stock", "kernels"):
        rig = make_rig(variant, TINY, device, torch.float32)
        results[variant] = evaluated(rig, TINY, 3, (-1.0, 2.0))
    assert results["stock"].std() > 0.1
    for variant in ("published", "kernels"):
        difference = (results[variant] - results["stock"]).norm() / results["stock"].norm()
        assert 0 < difference < 1e-4


def test_latents_are_edited_alike_on_the_host_and_in_the_engine() -> None:
    rigs = [make_rig(variant, TINY, torch.device("cpu"), torch.float32) for variant in ("stock", "kernels")]
    theirs, ours = (edited(rig, TINY, motions_of(TINY)) for rig in rigs)
    assert theirs.shape == (TINY.frames + 1, 4, TINY.side, TINY.side)
    assert (theirs[1] != theirs[0]).any()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


QUICK = ("guidance_step", "warp_latents")


def test_workers_check_what_one_process_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, every = torch.device("cpu"), cases(dry=True)
    quick = {index: check_case(case, cpu) for index, case in enumerate(every) if case.kernel in QUICK}
    monkeypatch.setattr(checks, "check_case", lambda case, device: pytest.fail(f"no worker answered for {case}"))
    found = list(check_kernels(cpu, dry=True, workers=2))
    assert [result["kernel"] for result in found] == [case.kernel for case in every]
    assert {index: found[index] for index in quick} == quick


def test_what_broken_workers_leave_is_checked_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    few = [case for case in cases(dry=True) if case.kernel in QUICK]
    monkeypatch.setattr(checks, "cases", lambda dry: few)
    monkeypatch.setattr(checks.sys, "executable", "/bin/false")
    results = list(check_kernels(torch.device("cpu"), dry=True, workers=2))
    assert len(results) == len(few) > 10
    assert all(result["holds"] for result in results)


def test_an_operator_that_raises_is_a_check_that_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(**_: object) -> None:
        raise ValueError("out of shared memory")

    broken = dataclasses.replace(KERNELS["guidance_step"], op=refuses)
    few = [case for case in cases(dry=True) if case.kernel in QUICK]
    monkeypatch.setattr(checks, "cases", lambda dry: few)
    monkeypatch.setitem(KERNELS, "guidance_step", broken)
    results = list(check_kernels(torch.device("cpu"), dry=True, workers=0))
    red = [result for result in results if not result["holds"]]
    assert {result["kernel"] for result in red} == {"guidance_step"}
    assert {result["raised"] for result in red} == {"ValueError: out of shared memory"}


def test_the_launches_of_a_network_are_found_without_running_it() -> None:
    found = launches(TINY, ((1, 1), (4, 2)))
    assert len(found) == len(set(found))
    assert {name for name, _ in found} == {
        "gated_linear", "group_norm_silu", "guidance_step", "key_frame_attention", "layer_norm", "residual_sum",
        "temporal_attention",
    }  # fmt: skip
    norms = [told for name, told in found if name == "group_norm_silu"]
    assert {told[7] for told in norms} == {True, False}
    assert {told[3] is None for told in norms} == {True, False}
    for what in found:
        launch(what, torch.device("cpu"))


def test_a_variant_without_memory_is_a_line_and_the_next_one_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(variant: str, *rest: Any) -> Any:
        if variant == "published":
            raise EngineError("engine-memory", "the GPU's memory is full")
        return make_rig(variant, *rest)

    monkeypatch.setattr(parts, "make_rig", short)
    first, *others = frames(Bench(torch.device("cpu"), True, {}))
    assert first == {
        "variant": "published", "frames": 2, "failed": "engine-memory: the GPU's memory is full",
    }  # fmt: skip
    assert [record["variant"] for record in others] == ["stock", "kernels"]
    assert [record["times_faster"]["than"] for record in others] == ["stock", "stock"]


def test_a_step_whose_memory_cannot_be_counted_keeps_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise AttributeError("another PyTorch")

    monkeypatch.setattr(parts, "count_held", fails)
    found = list(frames(Bench(torch.device("cpu"), True, {})))
    assert [record["variant"] for record in found] == ["published", "stock", "kernels"]
    assert all(record["ms"]["p50"] > 0 and "counted_bytes" not in record for record in found)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_every_check_holds_on_this_gpu(tmp_path: Path) -> None:
    """In a process of its own: in this one the kernels are interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "posecrafter.bench.gpu", "--parts", "check", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
