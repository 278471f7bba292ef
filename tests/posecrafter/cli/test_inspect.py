"""`posecrafter inspect` on what `posecrafter compile` built."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from posecrafter.cli import app
from posecrafter.files import read_json, write_json
from posecrafter.runtime import engines

RTX, OPENVINO = "tensorrt-rtx-sm89", "openvino-"


def run(*words: Any) -> Result:
    done = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "220"})
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture(scope="module")
def compiled(tensorrt_rtx: Any, toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy bundle compiled for passes of 3 frames by two engines. Not to be changed."""
    bundle = Path(shutil.copytree(toy_bundle, tmp_path_factory.mktemp("inspect") / "bundle"))
    told = json.loads(run("compile", bundle, "--engine", "openvino", "--frames", 3, "--json").stdout.splitlines()[-1])
    assert told["built"]
    words = run("compile", bundle, "--engine", "tensorrt-rtx", "--target", "sm89", "--frames", 3).stdout
    assert "built; tensorrt-rtx 1." in words
    assert "1 fused attentions" in words
    return bundle


@pytest.fixture
def bundle(compiled: Path, tmp_path: Path) -> Path:
    """A copy of it, to spoil."""
    return Path(shutil.copytree(compiled, tmp_path / "bundle"))


def engine_json(bundle: Path) -> Path:
    return bundle / "engines" / RTX / "engine.json"


def test_the_table_tells_engine_builder_sizes_bytes_hash_and_parity(compiled: Path) -> None:
    shown = run("inspect", compiled).stdout
    record = read_json(engine_json(compiled))
    lines = [line for line in shown.splitlines() if RTX in line]
    assert len(lines) == 4
    for line, (graph, (part,)) in zip(lines, record["graphs"].items(), strict=True):
        assert graph in line
        assert part["sha256"][:12] in line
        assert f"{part['bytes'] / 2**20:.1f}" in line
        assert f"{record['version']}, fp16" in line
    assert "frames 3" in shown
    assert "compiled; every file verified" in shown
    openvino = [line for line in shown.splitlines() if OPENVINO in line and "denoiser" in line]
    assert openvino
    assert all("e-0" in line for line in openvino)  # its distance from ONNX Runtime, as 1.2e-03


def test_json_holds_the_manifest_and_every_engines_record(compiled: Path) -> None:
    told = json.loads(run("inspect", compiled, "--json").stdout)
    assert told["kind"] == "merged"
    assert told["persons"] == {}
    assert set(told["files"]) >= {"graphs/denoiser.onnx"}
    rtx = told["engines"][RTX]
    raw = {name: value for name, value in read_json(engine_json(compiled)).items() if not name.startswith("format")}
    assert rtx == raw
    (name,) = told["engines"].keys() - {RTX}
    assert name.startswith(OPENVINO)
    assert 0 < told["engines"][name]["parity"]["denoiser"] < 1e-2


def test_auto_is_told_by_plan_and_inspect_once_it_was_measured_and_until_then_that_it_was_not(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    plan = ["plan", toy_bundle, "--poses", toy_bundle / "person" / "poses.json", "--json"]
    for told in (json.loads(run("inspect", toy_bundle, "--json").stdout)["auto"], json.loads(run(*plan).stdout)):
        assert "not measured yet" in told.get("why", told.get("engine_why"))
    assert not (tmp_path / "cache").exists()
    made = json.loads(run("inspect", toy_bundle, "--measure", "--json").stdout)["auto"]
    assert made["name"] in ("onnxruntime", "openvino")
    assert "measured on" in made["why"]
    assert {"onnxruntime", "openvino"} - {made["name"]} <= made["passed_over"].keys()
    (kept,) = (tmp_path / "cache" / "posecrafter" / "engines").glob("*.json")
    assert json.loads(run("inspect", toy_bundle, "--json").stdout)["auto"] == made
    told = json.loads(run(*plan).stdout)
    assert told["engine"].split()[0] == made["name"]
    assert told["engine_why"].startswith(made["why"])
    assert made["why"] in " ".join(run("inspect", toy_bundle).stdout.split())
    kept.write_text("{")
    assert "not measured yet" in json.loads(run(*plan).stdout)["engine_why"]


def test_where_no_engine_is_installed_plan_and_inspect_say_so(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    assert json.loads(run("inspect", toy_bundle, "--json").stdout)["auto"].startswith("error[engine-missing]")
    told = json.loads(run("plan", toy_bundle, "--poses", toy_bundle / "person" / "poses.json", "--json").stdout)
    assert told["engine"] is None
    assert "pip install onnxruntime" in told["engine_why"]


def test_an_engine_that_cannot_be_used_is_shown_with_the_reason(bundle: Path) -> None:
    plan = bundle / "engines" / RTX / "denoiser.plan"
    plan.write_bytes(plan.read_bytes()[:-1])
    told = json.loads(run("inspect", bundle, "--json").stdout)["engines"]
    assert told[RTX].startswith("error[plan-altered]")
    assert f"posecrafter compile {bundle} --engine tensorrt-rtx" in told[RTX]
    assert f"{RTX}: {told[RTX]}\n" in run("inspect", bundle).stdout
    assert len(told) == 2


def test_an_engine_built_from_another_graph_is_marked(bundle: Path) -> None:
    record = read_json(engine_json(bundle))
    write_json(engine_json(bundle), {**record, "sources": {**record["sources"], "denoiser": "0" * 64}})
    stale = [line for line in run("inspect", bundle).stdout.splitlines() if "compile again" in line]
    assert len(stale) == 1
    assert "denoiser" in stale[0]
