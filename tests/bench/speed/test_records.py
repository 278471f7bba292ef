from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from posecrafter.bench.records import read_records
from posecrafter.bench.speed import records as records_module
from posecrafter.bench.speed.cases import EAGER, Case, Runner
from posecrafter.bench.speed.records import latest, of_newest_machine, record_cases
from posecrafter.bench.speed.report import BEGIN, END, write_report
from posecrafter.cli import app
from posecrafter.errors import RequestError

CASES = [Case("pocket 128", "render", (EAGER,)), Case("memory, openvino", "memory", (Runner("openvino"),))]


def line(case: str, label: str = "a", **values: Any) -> str:
    return json.dumps({"case": case, "label": label, **values})


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the cases that a process was started for; each gives one line, but "memory, openvino" the first time."""
    asked: list[str] = []

    def measure(case: Case, work: Path, threads: int | None) -> list[str] | None:
        asked.append(case.name)
        if case.name.startswith("memory") and asked.count(case.name) == 1:
            return None
        return [line(case.name)]

    monkeypatch.setattr(records_module, "_measure", measure)
    return asked


def test_what_is_recorded_is_not_measured_again_and_what_failed_is(measured: list[str], tmp_path: Path) -> None:
    path = tmp_path / "results" / "speed.jsonl"
    assert record_cases(CASES, path, tmp_path) == [CASES[1]]
    assert record_cases(CASES, path, tmp_path) == []
    assert record_cases(CASES, path, tmp_path) == []
    assert measured == ["pocket 128", "memory, openvino", "memory, openvino"]
    assert [record["case"] for record in read_records(path)] == ["pocket 128", "memory, openvino"]
    assert record_cases(CASES[:1], path, tmp_path, again=True) == []
    assert len(read_records(path)) == 3


def test_another_commit_is_measured_anew(measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "speed.jsonl"
    record_cases(CASES[:1], path, tmp_path)
    monkeypatch.setattr("posecrafter.bench.machine.commit_of", lambda _: "another")
    record_cases(CASES[:1], path, tmp_path)
    assert measured == ["pocket 128"] * 2
    assert read_records(path)[0]["machine"]["cpu"]
    assert {record["machine"]["commit"] for record in read_records(path)} > {"another"}


def test_another_number_of_threads_is_another_record(measured: list[str], tmp_path: Path) -> None:
    path = tmp_path / "speed.jsonl"
    record_cases(CASES[:1], path, tmp_path, threads=1)
    record_cases(CASES[:1], path, tmp_path, threads=1)
    record_cases(CASES[:1], path, tmp_path, threads=3)
    assert [record["machine"]["threads"] for record in read_records(path)] == [1, 3]


def test_a_processor_of_one_name_with_other_flags_or_cores_is_another_machine(
    measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "speed.jsonl"
    for flags, cores in ((["avx2"], {0, 1}), (["avx2", "avx512_bf16"], {0, 1}), (["avx2"], {0, 1, 2})):
        monkeypatch.setattr("posecrafter.bench.machine.cpu_flags", lambda flags=flags: flags)
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: cores)
        for _ in range(2):
            assert record_cases(CASES[:1], path, tmp_path, threads=2) == []
    machines = [record["machine"] for record in read_records(path)]
    assert [(len(machine["flags"]), machine["cores"]) for machine in machines] == [(1, 2), (2, 2), (1, 3)]


def test_a_line_that_does_not_tell_its_machine_whole_is_measured_anew(measured: list[str], tmp_path: Path) -> None:
    path = tmp_path / "speed.jsonl"
    record_cases(CASES[:1], path, tmp_path)
    (record,) = read_records(path)
    del record["machine"]["flags"]
    path.write_text(json.dumps(record) + "\n")
    record_cases(CASES[:1], path, tmp_path)
    assert len(read_records(path)) == 2


def test_the_last_record_of_a_runner_counts() -> None:
    found = latest(
        [{"case": "c", "label": "a", "n": 1}, {"case": "c", "label": "b", "n": 2}, {"case": "c", "label": "a", "n": 3}]
    )
    assert sorted(record["n"] for record in found.values()) == [2, 3]


def render(runner: str, ratio: float, **values: Any) -> dict[str, Any]:
    made = {
        "case": "pocket 128", "kind": "render", "runner": runner, "label": f"{runner} {values}", "inversion": "target",
        "precision": "fp32", "repeated": False, "size": 128, "frames": 16, "steps": 25, "ratio": ratio, "psnr": 80.0,
        "seconds": {"p20": 1.0, "p50": 1.5, "p80": 2.0}, "stages": {"invert": 0.5, "sample": 1.0},
        "frame_evaluations": 10, "gflop_per_second": 50.0, "share": 0.61, "step_gflop": 30.0,
        "machine": {"cpu": "A", "cores": 2, "threads": 2, "flags": ["avx2"], "commit": "c",
                    "date": "2026-11-25T00:00:00", "load": 0.1, "libraries": {"torch": "2"}},
    }  # fmt: skip
    return made | values


def test_the_page_is_rebuilt_between_its_marks_from_the_records_alone(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"# Before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    memory = {
        "case": "memory, ",
        "kind": "memory",
        "open_seconds": 0.4,
        "import_seconds": 0.2,
        "machine": render("x", 1)["machine"],
    }
    found = [
        render("published eager", 1.0),
        render("openvino", 1.91),
        render("onnxruntime", 1.87),
        render("openvino", 0, precision="bf16", inversion="reference", skipped="no bf16 here"),
        render("openvino", 2.0, case="frames 17", frames=16, seconds={"p20": 1, "p50": 2.0, "p80": 3}),
        render("openvino", 2.0, case="frames 33", frames=32, seconds={"p20": 1, "p50": 4.1, "p80": 3}),
        {**memory, "runner": "published eager", "label": "p", "case": "memory, published eager", "peak_mib": 1000},
        {**memory, "runner": "openvino", "label": "o", "case": "memory, openvino", "peak_mib": 400},
    ]
    write_report(found, page)
    text = page.read_text()
    assert text.startswith("# Before")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| ours, fp32, target mode | 2.2x | 1.91x (openvino) |" in text
    assert "| ours, bf16, reference mode, first request | 5x | no bf16 here |" in text
    assert "0.40x (openvino)" in text
    assert "2.05x (openvino)" in text
    for name in ("speed-stages.png", "speed-memory.png", "speed-frames.png"):
        assert name in text
        assert (tmp_path / name).stat().st_size > 1000
    write_report(found, page)
    assert page.read_text() == text


def test_the_page_holds_the_newest_machines_lines_alone(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    old = render("published eager", 1.0)
    here = render("openvino", 1.5)["machine"] | {"date": "2026-11-26T00:00:00"}
    there = here | {"flags": ["avx2", "avx512_bf16"], "date": "2026-11-27T00:00:00"}
    newest = render("openvino", 2.5, machine=there, label="theirs")
    found = [old, newest, render("onnxruntime", 1.5, machine=here, label="ours")]
    write_report(found, page)
    assert "openvino" in page.read_text()
    assert "onnxruntime" not in page.read_text()
    assert "(avx2), commit" not in page.read_text()
    assert of_newest_machine(found[:1] + found[2:]) == found[:1] + found[2:]
    assert of_newest_machine([]) == []


def test_a_busy_machine_is_told(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    record = render("published eager", 1.0)
    write_report([record], page)
    assert "busy" not in page.read_text()
    write_report([record | {"machine": record["machine"] | {"load": 3.4}}], page)
    assert "The machine was busy" in page.read_text()


def test_a_page_without_marks_is_refused_and_stays(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text("# Mine\n")
    with pytest.raises(RequestError) as caught:
        write_report([render("published eager", 1.0)], page)
    assert caught.value.code == "bench-page"
    assert page.read_text() == "# Mine\n"


def test_the_command_names_its_cases_and_refuses_an_unknown_one() -> None:
    listed = CliRunner().invoke(app, ["bench", "--list"])
    assert "pocket 128" in listed.output.splitlines()
    refused = CliRunner().invoke(app, ["bench", "--case", "moon"])
    assert isinstance(refused.exception, RequestError)
    assert refused.exception.code == "bench-case"
