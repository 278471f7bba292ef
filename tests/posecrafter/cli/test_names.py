"""Names of files that are not plain ASCII words, through the real command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RESULT = "Ergebnis é"


def run(folder: Path, *words: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "posecrafter", *map(str, words)]
    return subprocess.run(command, capture_output=True, check=False, cwd=folder, env={**os.environ, **environment})


@pytest.fixture
def folder(inputs: Path, tiny_bundle: Path, tmp_path: Path) -> Path:
    """One with a space and an umlaut, with a bundle, a link to it, and poses."""
    made = tmp_path / "Ordner für alles"
    shutil.copytree(tiny_bundle, made / "Bündel ß")
    (made / "Verweis ñ").symlink_to("Bündel ß")
    shutil.copy(inputs / "poses.json", made / "Posen ü.json")
    return made


@pytest.mark.parametrize("engine", ["auto", "onnxruntime", "openvino"])
def test_spaces_umlauts_links_and_a_slash_at_the_end_are_names_like_others(folder: Path, engine: str) -> None:
    words = ("Verweis ñ/", "--poses", "Posen ü.json", "--steps", 1, "--sampling-steps", 1, "--engine", engine)
    done = run(folder, "generate", *words, "--out", f"{RESULT}/", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["out"] == RESULT
    assert len(list((folder / RESULT).iterdir())) == 10
    assert run(folder, "inspect", "Verweis ñ/").returncode == 0


def test_a_terminal_that_cannot_say_a_name_is_shown_it_in_escapes(folder: Path) -> None:
    done = run(folder, "poses", "draw", "Posen ü.json", "--out", f"{RESULT}.mp4", PYTHONIOENCODING="iso8859-5:strict")
    assert done.returncode == 0, done.stderr
    assert (folder / f"{RESULT}.mp4").is_file()
    assert done.stdout.startswith(b"Ergebnis \\xe9.mp4")


def test_a_refusal_names_a_file_whose_name_is_no_text(folder: Path) -> None:
    done = run(folder, "inspect", os.fsdecode(b"no bundle \xff"))
    assert done.returncode == 2
    assert done.stderr.startswith(b"error[bundle-missing]: no bundle \\udcff")
