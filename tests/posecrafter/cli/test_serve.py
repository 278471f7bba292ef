from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from posecrafter.cli import app
from posecrafter.errors import PoseCrafterError


@contextmanager
def serving(*words: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command as a process, and its address as it says it."""
    command = [sys.executable, "-P", "-m", "posecrafter", "serve", *map(str, words)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            found = re.search(r"http://\S+:\d+", process.stderr.readline())
            assert found
            yield process, found[0]
        finally:
            process.kill()


def test_a_bundle_is_served_until_the_process_is_told_to_end(tiny_bundle: Path) -> None:
    options = ("--port", 0, "--engine", "onnxruntime", "--sessions", 2, "--no-cache")
    with serving(tiny_bundle, *options) as (process, address):
        assert httpx.get(f"{address}/health").json() == {"healthy": True}
        poses = (tiny_bundle / "person" / "poses.json").read_bytes()
        answer = httpx.post(f"{address}/v1/videos", params={"steps": 1}, content=poses, timeout=60)
        assert answer.status_code == 200
        assert answer.content[4:8] == b"ftyp"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == -signal.SIGTERM
        assert process.stderr is not None
        assert process.stderr.read() == ""


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
def test_an_end_waits_no_longer_for_open_requests_than_it_was_told(told: signal.Signals, tiny_bundle: Path) -> None:
    poses = (tiny_bundle / "person" / "poses.json").read_bytes()
    words = {"steps": 1000, "inversion_iterations": 16}  # minutes
    with serving(tiny_bundle, "--port", 0, "--engine", "onnxruntime", "--drain", 0.5, "--no-cache") as (
        process,
        address,
    ):
        with ThreadPoolExecutor(2) as asking:
            answers = [
                asking.submit(httpx.post, f"{address}/v1/videos", params=words, content=poses, timeout=60)
                for _ in range(2)
            ]
            while "posecrafter_open_requests 2.0" not in httpx.get(f"{address}/metrics").text:
                pass
            process.send_signal(told)
            assert process.wait(20) != 0
        for answer in answers:
            assert (answer.result().status_code, answer.result().json()["error"]["code"]) == (503, "closing")


def refused(*words: object) -> PoseCrafterError:
    result = CliRunner().invoke(app, ["serve", *map(str, words)])
    assert isinstance(result.exception, PoseCrafterError)
    return result.exception


def test_a_port_in_use_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        error = refused(tmp_path / "no-bundle", "--port", taken.getsockname()[1])
    assert error.code == "listen"
    assert "\n" not in error.message
    assert refused(tmp_path / "no-bundle", "--port", 70_000).code == "listen"
    assert refused(tmp_path / "no-bundle", "--host", "no host", "--port", 0).code == "listen"


def test_a_bundle_that_is_none_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "no-bundle", "--port", 0).code == "bundle-missing"


def test_without_the_extra_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("posecrafter.cli.serve.find_spec", lambda name: None)
    error = refused(tmp_path)
    assert error.code == "serve-missing"
    assert "pip install" in error.message
