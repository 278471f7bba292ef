"""`posecrafter export --person`, `generate --person` and `inspect` on a shared bundle of a tiny random base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from posecrafter.cli import app
from posecrafter.errors import PoseCrafterError


def run(*words: Any) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})


def refusal(*words: Any) -> PoseCrafterError:
    done = run(*words)
    assert isinstance(done.exception, PoseCrafterError), done.output
    return done.exception


@pytest.fixture(scope="module")
def bundle(shared_bundle: Path, people: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the shared bundle to which the command line added d as "dora", in full matrices."""
    copy = Path(shutil.copytree(shared_bundle, tmp_path_factory.mktemp("people") / "bundle"))
    done = run("export", people["d"], "--out", copy, "--person", "dora", "--full-matrices", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["person"] == str(copy / "persons" / "dora")
    assert told["kind"] == "full matrices"
    assert 0 < told["parity"]["denoiser"] <= told["parity"]["bound_graph"]
    return copy


def generate(bundle: Path, out: Path, *words: Any) -> np.ndarray:
    """Frames [M, H, W, 3] of one solver step, onnxruntime on one thread."""
    fast = ["--engine", "onnxruntime", "--threads", 1, "--steps", 1, "--no-cache"]
    poses = bundle / "person" / "poses.json"
    done = run("generate", bundle, "--poses", poses, "--out", out, *fast, *words, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["engine"] == "onnxruntime on cpu"
    frames = np.stack([cv2.imread(str(path)) for path in sorted(out.glob("*.png"))]).astype(int)
    assert len(frames) == told["frames"]
    return frames


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_generate_renders_the_person_named_and_a_pack_by_its_path(bundle: Path, tmp_path: Path) -> None:
    own = generate(bundle, tmp_path / "own")
    dora = generate(bundle, tmp_path / "dora", "--person", "dora")
    assert np.abs(own - dora).max() > 20
    elsewhere = shutil.copytree(bundle / "persons" / "d", tmp_path / "elsewhere")
    np.testing.assert_array_equal(generate(bundle, tmp_path / "d", "--person", elsewhere), dora)


def test_a_person_who_is_not_there_is_refused_with_those_who_are(bundle: Path, tmp_path: Path) -> None:
    words = ["generate", bundle, "--poses", bundle / "person" / "poses.json", "--out", tmp_path / "zoe"]
    error = refusal(*words, "--engine", "onnxruntime", "--person", "zoe")
    assert error.code == "pack-missing"
    assert "b, c, d, dora" in error.message
    assert not (tmp_path / "zoe").exists()


def test_export_replaces_a_person_only_when_told_to(bundle: Path, people: dict[str, Path]) -> None:
    error = refusal("export", people["b"], "--out", bundle, "--person", "dora")
    assert error.code == "bundle-exists"
    assert "--overwrite" in error.message


def test_inspect_shows_people_how_their_weights_lie_and_who_is_spoilt(bundle: Path, tmp_path: Path) -> None:
    shown = run("inspect", bundle).stdout
    told = json.loads(run("inspect", bundle, "--json").stdout)["persons"]
    assert "shared, fp32" in shown
    assert list(told) == ["b", "c", "d", "dora"]
    for record in told.values():
        kind = f"low rank {record['low_rank']['rank']}" if record["low_rank"] else "full matrices"
        weights = record["files"]["weights.safetensors"]["sha256"][:12]
        assert any(kind in line and weights in line for line in shown.splitlines())
    assert [record["low_rank"] for record in told.values()] == [None, None, {"rank": 4, "scale": 2.0}, None]
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    (copy / "persons" / "c" / "poses.json").write_text("{}")
    assert "error[pack-hash]" in run("inspect", copy).stdout
    assert json.loads(run("inspect", copy, "--json").stdout)["persons"]["c"].startswith("error[pack-hash]")
