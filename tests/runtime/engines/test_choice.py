from __future__ import annotations

import platform
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from posecrafter.errors import EngineError
from posecrafter.runtime import engines
from posecrafter.runtime.engines import choose_engine, computes_in_bf16, native, onnxruntime, open_engine
from posecrafter.runtime.engines import processor as processor_module
from posecrafter.runtime.engines.processor import describe_processor, has_bf16, processor_name

Hide = Callable[..., None]


@pytest.fixture
def hide(monkeypatch: pytest.MonkeyPatch) -> Hide:
    """Make packages look as if they were not installed."""

    def run(*names: str) -> None:
        monkeypatch.setattr(engines, "find_spec", lambda name: None if name in names else find_spec(name))

    return run


@pytest.fixture
def layered(toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """The toy bundle with an index of layers, on a processor for which the engine 'native' has these kernels; "" for a
    machine without that engine."""
    folder = Path(shutil.copytree(toy_bundle, tmp_path / "bundle"))
    (folder / "graphs" / "denoiser.layers").write_text("")

    def with_kernels(words: str) -> Path:
        found = Path(__file__) if words else None
        monkeypatch.setattr(native, "find_spec", lambda name: found and SimpleNamespace(origin=str(found)))
        monkeypatch.setattr(native, "load_library", lambda path: SimpleNamespace(kernels=lambda: words))
        return folder

    return with_kernels


@pytest.mark.parametrize("kernels", ["avx2", "avx512", "neon", "neon bf16"])
@pytest.mark.parametrize("flags", ["", "amx_bf16"])
def test_auto_takes_native_where_it_has_kernels_for_the_cpu(
    kernels: str, flags: str, layered: Callable[[str], Path], processor: Callable[[str], Path]
) -> None:
    processor(flags)
    choice = choose_engine(layered(kernels))
    assert (choice.name, choice.precision) == ("native", None)
    assert kernels in choice.told


@pytest.mark.parametrize(("kernels", "able"), [("neon bf16", True), ("neon", False)])
def test_native_tells_itself_whether_it_computes_in_bf16_since_on_arm_openvino_does_not(
    kernels: str, able: bool, layered: Callable[[str], Path], processor: Callable[[str], Path]
) -> None:
    processor("")
    layered(kernels)
    assert computes_in_bf16("native") is able
    assert not computes_in_bf16("openvino")


def test_auto_passes_native_over_where_its_kernels_are_plain_and_says_so(
    layered: Callable[[str], Path], processor: Callable[[str], Path], hide: Hide
) -> None:
    processor("")
    choice = choose_engine(layered("plain"))
    assert choice.name == "onnxruntime"
    assert "--engine native takes it all the same" in choice.told
    hide("onnxruntime")
    assert choose_engine(layered("plain")).name == "openvino"
    hide("onnxruntime", "openvino")
    assert choose_engine(layered("plain")).name == "native"


def test_auto_takes_another_engine_where_native_is_not_built_or_the_bundle_has_no_layers(
    layered: Callable[[str], Path], toy_bundle: Path, processor: Callable[[str], Path]
) -> None:
    processor("")
    choice = choose_engine(layered(""))
    assert choice.name == "onnxruntime"
    assert "it needs GCC 12 or clang" in choice.told
    layered("avx512")
    choice = choose_engine(toy_bundle)
    assert choice.name == "onnxruntime"
    assert "denoiser.layers is missing" in choice.told


@pytest.mark.parametrize("flag", ["amx_bf16", "avx512_bf16"])
def test_auto_takes_openvino_on_a_cpu_that_multiplies_bf16(
    flag: str, toy_bundle: Path, processor: Callable[[str], Path]
) -> None:
    assert has_bf16(processor(f"avx512f {flag} amx_tile"))
    assert choose_engine(toy_bundle).name == "openvino"


def test_auto_takes_onnxruntime_on_a_cpu_that_does_not_and_says_why(
    toy_bundle: Path, processor: Callable[[str], Path]
) -> None:
    processor("avx512f avx512_bf16x")
    choice = choose_engine(toy_bundle)
    assert choice.name == "onnxruntime"
    assert "no bf16" in choice.passed_over["openvino"]
    assert "--engine openvino" in choice.passed_over["openvino"]


def test_a_processor_is_described_by_its_name_and_the_instructions_that_multiply(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: A\nflags\t\t: fpu avx2 amx_bf16\n\nmodel name\t: B\n")
    assert describe_processor(cpuinfo) == "A, amx_bf16, avx2"
    assert describe_processor(tmp_path / "nothing") == platform.machine()


def test_an_arm_processor_is_described_by_its_numbers(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nFeatures\t: fp asimd bf16\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n")
    assert describe_processor(cpuinfo) == "0x41, 0xd40, asimd, bf16"
    assert processor_name(cpuinfo) == platform.machine()


def test_on_macos_the_system_names_the_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(processor_module.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=b"Apple M2\n"))
    processor_module._brand.cache_clear()
    try:
        assert describe_processor(tmp_path / "nothing") == processor_name(tmp_path / "nothing") == "Apple M2"
    finally:
        processor_module._brand.cache_clear()


@pytest.mark.parametrize(("asked", "given"), [(None, 2), (5, 5)])
def test_an_engine_that_is_told_no_threads_takes_what_a_container_grants(
    asked: int | None, given: int, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    monkeypatch.setattr(engines, "limited_cores", lambda: 2)
    monkeypatch.setattr(onnxruntime, "OnnxRuntimeEngine", lambda folder, threads: told.append(threads))
    open_engine("onnxruntime", toy_bundle, asked)
    assert told == [given]


def test_a_processor_that_nothing_tells_of_has_no_bf16(tmp_path: Path) -> None:
    assert not has_bf16(tmp_path / "nothing")
    (tmp_path / "arm").write_text("processor : 0\nFeatures : fp asimd bf16\n")
    assert not has_bf16(tmp_path / "arm")


def test_auto_takes_the_other_cpu_engine_where_one_is_not_installed(
    toy_bundle: Path, hide: Hide, processor: Callable[[str], Path]
) -> None:
    processor("amx_bf16")
    hide("openvino")
    choice = choose_engine(toy_bundle)
    assert choice.name == "onnxruntime"
    assert "pip install openvino" in choice.passed_over["openvino"]
    processor("")
    hide("onnxruntime")
    assert choose_engine(toy_bundle).name == "openvino"


def test_auto_with_a_precision_takes_an_engine_that_can_be_told_one(
    toy_bundle: Path, processor: Callable[[str], Path]
) -> None:
    processor("")
    choice = choose_engine(toy_bundle, precision="fp32")
    assert (choice.name, choice.precision) == ("openvino", "fp32")


def test_an_engine_that_is_not_installed_is_named_with_the_cure(toy_bundle: Path, hide: Hide) -> None:
    hide("openvino")
    with pytest.raises(EngineError) as caught:
        open_engine("openvino", toy_bundle)
    assert caught.value.code == "engine-missing"
    assert "pip install openvino" in caught.value.message
    assert "--engine auto takes onnxruntime" in caught.value.message
    hide("openvino", "onnxruntime")
    with pytest.raises(EngineError) as caught:
        choose_engine(toy_bundle)
    assert caught.value.code == "engine-missing"
    assert "pip install onnxruntime" in caught.value.message


def test_an_engine_without_plans_names_the_command_that_builds_them(toy_bundle: Path) -> None:
    with pytest.raises(EngineError) as caught:
        open_engine("tensorrt-rtx", toy_bundle)
    assert caught.value.code == "plan-missing"
    assert f"posecrafter compile {toy_bundle} --engine tensorrt-rtx" in caught.value.message


def test_an_unknown_engine_and_a_precision_it_does_not_take_are_refused(toy_bundle: Path) -> None:
    with pytest.raises(EngineError) as caught:
        open_engine("abacus", toy_bundle)
    assert caught.value.code == "engine-unknown"
    with pytest.raises(EngineError) as caught:
        open_engine("onnxruntime", toy_bundle, precision="bf16")
    assert caught.value.code == "engine-precision"
