from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from posecrafter.errors import EngineError
from posecrafter.runtime import engines
from posecrafter.runtime.engines import choose_engine, open_engine

Hide = Callable[..., None]


@pytest.fixture
def hide(monkeypatch: pytest.MonkeyPatch) -> Hide:
    """Make packages look as if they were not installed."""

    def run(*names: str) -> None:
        monkeypatch.setattr(engines, "find_spec", lambda name: None if name in names else find_spec(name))

    return run


def test_auto_takes_openvino_where_it_is_installed(tiny_bundle: Path) -> None:
    assert choose_engine(tiny_bundle).name == "openvino"
    assert open_engine("auto", tiny_bundle).name == "openvino"


def test_auto_falls_back_to_onnxruntime_and_says_why(tiny_bundle: Path, hide: Hide) -> None:
    hide("openvino")
    choice = choose_engine(tiny_bundle)
    assert choice.name == "onnxruntime"
    assert "pip install openvino" in choice.passed_over["openvino"]
    assert open_engine("auto", tiny_bundle).name == "onnxruntime"


def test_an_engine_that_is_not_installed_is_named_with_the_cure(tiny_bundle: Path, hide: Hide) -> None:
    hide("openvino")
    with pytest.raises(EngineError) as caught:
        open_engine("openvino", tiny_bundle)
    assert caught.value.code == "engine-missing"
    assert "pip install openvino" in caught.value.message
    assert "--engine auto takes onnxruntime" in caught.value.message
    hide("openvino", "onnxruntime")
    with pytest.raises(EngineError) as caught:
        open_engine("auto", tiny_bundle)
    assert caught.value.code == "engine-missing"
    assert "pip install onnxruntime" in caught.value.message


def test_an_engine_without_plans_names_the_command_that_builds_them(tiny_bundle: Path) -> None:
    with pytest.raises(EngineError) as caught:
        open_engine("tensorrt-rtx", tiny_bundle)
    assert caught.value.code == "plan-missing"
    assert f"posecrafter compile {tiny_bundle} --engine tensorrt-rtx" in caught.value.message


def test_an_unknown_engine_and_a_precision_it_does_not_take_are_refused(tiny_bundle: Path) -> None:
    with pytest.raises(EngineError) as caught:
        open_engine("abacus", tiny_bundle)
    assert caught.value.code == "engine-unknown"
    with pytest.raises(EngineError) as caught:
        open_engine("onnxruntime", tiny_bundle, precision="bf16")
    assert caught.value.code == "engine-precision"
