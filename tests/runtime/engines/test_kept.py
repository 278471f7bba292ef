"""Kernels that TensorRT-RTX compiled on first use, kept beside the plans, on the double of conftest.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from posecrafter import files
from posecrafter.runtime.engines.kept import Kept, Origin
from posecrafter.runtime.engines.tensorrt import TensorRtEngine

RTX = "tensorrt-rtx"


def kernel_files(bundle: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((bundle / "engines").glob("*/*.kernels"))}


def decode_once(bundle: Path) -> None:
    engine = TensorRtEngine(bundle, RTX)
    engine.load("vae_decoder").run({"latents": engine.upload(np.zeros((1, 4, 4, 5), np.float32))})
    engine.close()


def test_kernels_compiled_on_first_use_are_kept_and_given_back(bundle: Path, library: SimpleNamespace) -> None:
    decode_once(bundle)
    assert list(kernel_files(bundle)) == ["vae_decoder-sm89.kernels"]
    assert library.given == {}
    decode_once(bundle)
    assert library.given == {"vae_decoder": b"kernels of vae_decoder"}
    assert {"create_runtime_cache", "set_runtime_cache", "deserialize", "serialize"} <= set(library.did)


def test_kernels_are_written_again_only_when_there_are_others(bundle: Path, library: SimpleNamespace) -> None:
    decode_once(bundle)
    (path,) = (bundle / "engines").glob("*/*.kernels")
    before = path.stat().st_ino
    decode_once(bundle)
    assert path.stat().st_ino == before
    session = TensorRtEngine(bundle, RTX)
    session.load("vae_decoder")
    library.kernels["vae_decoder"] = b"more kernels"
    session.close()
    assert kernel_files(bundle)[path.name].endswith(b"\nmore kernels")


@pytest.mark.parametrize("change", ["byte", "head", "short", "plan", "version", "gpu"])
def test_kernels_that_are_damaged_or_of_another_plan_version_or_gpu_never_reach_the_library(
    change: str, bundle: Path, library: SimpleNamespace, gpu: Callable[[str], None]
) -> None:
    decode_once(bundle)
    (path,) = (bundle / "engines").glob("*/*.kernels")
    head, _, data = path.read_bytes().partition(b"\n")
    record = json.loads(head)
    if change in ("plan", "version"):
        path.write_bytes(json.dumps({**record, change: "0" * 64}).encode() + b"\n" + data)
    elif change == "gpu":
        gpu("sm120")
        path.rename(path.with_name("vae_decoder-sm120.kernels"))
    else:
        path.write_bytes({"byte": head + b"\nX" + data[1:], "head": b"{" + data, "short": head}[change])
    decode_once(bundle)
    assert library.given == {}
    decode_once(bundle)
    assert library.given == {"vae_decoder": b"kernels of vae_decoder"}


def test_a_cache_that_gives_nothing_back_leaves_what_was_kept(bundle: Path, library: SimpleNamespace) -> None:
    decode_once(bundle)
    library.kernels["vae_decoder"] = b""
    decode_once(bundle)
    assert kernel_files(bundle)["vae_decoder-sm89.kernels"].endswith(b"\nkernels of vae_decoder")


def test_kernels_that_the_library_itself_passes_over_are_replaced(bundle: Path, library: SimpleNamespace) -> None:
    decode_once(bundle)
    library.fits, library.kernels["vae_decoder"] = False, b"other kernels"
    decode_once(bundle)
    assert library.given == {"vae_decoder": b"kernels of vae_decoder"}
    assert kernel_files(bundle)["vae_decoder-sm89.kernels"].endswith(b"\nother kernels")


def test_a_bundle_that_cannot_be_written_runs_without_keeping_kernels(
    bundle: Path, library: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.tempfile, "mkstemp", refuse)
    decode_once(bundle)
    assert kernel_files(bundle) == {}


def test_what_is_kept_may_hold_any_bytes(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "timing.cache", Origin("10.8", "sm90"))
    assert kept.read() == b""
    data = b"\n\n{}\x00" + bytes(range(256))
    assert kept.write(data)
    assert kept.read() == data
