from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from posecrafter.cli import app
from posecrafter.errors import PoseCrafterError


@pytest.mark.usefixtures("no_tracing")
def test_export_writes_a_bundle_and_prints_its_parity_and_the_engine_that_generate_then_takes(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    done = CliRunner().invoke(app, ["export", str(tiny_run), "--out", str(tmp_path / "bundle"), "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["bundle"] == str(tmp_path / "bundle")
    assert report["parity"]["denoiser"] <= report["parity"]["bound_graph"]
    assert report["engine"].split()[0] in ("onnxruntime", "native", "openvino")
    assert "measured on" in report["engine_why"]
    # What export measured is what the first `generate` goes by.
    (kept,) = (tmp_path / "cache" / "posecrafter" / "engines").glob("*.json")
    written, poses = kept.stat().st_mtime_ns, tmp_path / "bundle" / "person" / "poses.json"
    words = ["generate", str(tmp_path / "bundle"), "--poses", str(poses), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*words, "--steps", "1", "--no-cache", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["engine"] == f"{report['engine']} on cpu"
    assert told["engine_why"] == report["engine_why"]
    assert kept.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--precision", "int4"], "options-range"), (["--max-frames", "1"], "options-range"), ([], "run-missing")],
)
def test_export_refuses_bad_input_and_writes_nothing(arguments: list[str], code: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["export", str(tmp_path / "run"), "--out", str(tmp_path / "bundle"), *arguments])
    assert isinstance(done.exception, PoseCrafterError)
    assert done.exception.code == code
    assert not (tmp_path / "bundle").exists()
