"""Timings of a build, kept for the next one. TensorRT-RTX takes and gives them too, though they do nothing there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is made for x86-64, and not for macOS")

import tensorrt_rtx_bindings as trt

from posecrafter.export.profiles import make_profiles
from posecrafter.export.tensorrt_graph import tensorrt_copy
from posecrafter.export.tensorrt_plan import _take_timings, build_plan
from posecrafter.manifest import Manifest
from posecrafter.progress import silent
from posecrafter.runtime.engines.kept import Kept, Origin


class Config:
    """A builder's configuration that finds some timings malformed, and others those of another GPU."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []

    def create_timing_cache(self, data: bytes) -> bytes | None:
        return None if data == b"malformed" else data

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache == b"of another GPU":
            return False
        self.taken.append(cache)
        return True


@pytest.mark.parametrize(
    ("timings", "taken"), [(b"fit", b"fit"), (b"", b""), (b"malformed", b""), (b"of another GPU", b"")]
)
def test_a_build_starts_from_timings_that_fit_and_from_none_otherwise(timings: bytes, taken: bytes) -> None:
    config = Config()
    _take_timings(config, timings)
    assert config.taken == [taken]
    assert hasattr(trt.IBuilderConfig, "create_timing_cache")
    assert hasattr(trt.IBuilderConfig, "set_timing_cache")


@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")
def test_a_build_writes_its_timings_and_gives_them_to_the_next_one_of_that_version_and_gpu(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from posecrafter.export import tensorrt_plan

    source, given = toy_bundle / "graphs" / "text_encoder.onnx", []
    profiles = make_profiles(Manifest.read(toy_bundle), "text_encoder")

    def take(config: Any, data: bytes) -> None:
        given.append(data)
        _take_timings(config, data)

    monkeypatch.setattr(tensorrt_plan, "_take_timings", take)
    for origin in (Origin("1.7", "sm89"), Origin("1.7", "sm89"), Origin("1.7", "sm120")):
        kept, marked = Kept(tmp_path / "timing.cache", origin), tensorrt_copy(source, "fp16")
        build_plan(trt, marked.model, source, profiles, ("sm89",), silent, timings=kept)
        assert kept.read()
    assert given[0] == b""
    assert given[1] != b""
    assert given[2] == b""
