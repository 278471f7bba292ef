"""What "auto" takes, and why: figures of engines that are faked where their speed matters, and kept ones."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from posecrafter.errors import EngineError
from posecrafter.runtime import Bundle, Session
from posecrafter.runtime import choose as choose_module
from posecrafter.runtime import engines as engines_module
from posecrafter.runtime import measure as measure_module
from posecrafter.runtime import session as session_module
from posecrafter.runtime.choose import choose
from posecrafter.runtime.engines import measured as measured_module

BOUNDS = {"bound_graph": 1e-4, "bound_bf16": 2e-2}
BF16 = "avx512f amx_bf16"


@dataclass
class Lab:
    """The machine that the fakes run on. milliseconds, error: of a step, by engine and precision; opened: those that
    were; fails: those that cannot run, and why."""

    milliseconds: dict[str, float]
    error: dict[str, float] = field(default_factory=dict)
    fails: dict[str, str] = field(default_factory=dict)
    opened: list[str] = field(default_factory=list)
    now: float = 0.0

    def open(self, name: str, folder: Path, threads: int | None, precision: str | None) -> Faked:
        self.opened.append(" ".join(filter(None, (name, precision))))
        return Faked(self, self.opened[-1])


@dataclass
class Faked:
    lab: Lab
    name: str

    def load(self, graph: str) -> Faked:
        return self

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        if self.name in self.lab.fails:
            raise EngineError("engine-run", self.lab.fails[self.name])
        if "control_images" in inputs:
            return {"pose_features": np.zeros((2, 32, 4, 5), np.float32)}
        self.lab.now += self.lab.milliseconds[self.name] / 1000
        return {"eps": inputs["x"] * np.float32(1 + self.lab.error.get(self.name, 0))}

    def upload(self, array: np.ndarray) -> np.ndarray:
        return array

    def download(self, buffer: np.ndarray) -> np.ndarray:
        return buffer

    def close(self) -> None:
        self.name = "closed"


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch, processor: Callable[[str], Path]) -> Lab:
    """A processor with bf16, on which it is by far the fastest; time passes only while engines run."""
    made = Lab({"onnxruntime": 100, "openvino": 80, "openvino bf16": 40}, {"openvino bf16": 1e-2})
    clock = SimpleNamespace(perf_counter=lambda: made.now, strftime=lambda _: "2026-11-27")
    monkeypatch.setattr(measure_module, "time", clock)
    monkeypatch.setattr(measure_module, "open_engine", made.open)
    processor(BF16)
    return made


@pytest.fixture
def bundle(toy_bundle: Path) -> Bundle:
    opened = Bundle.open(toy_bundle)
    return replace(opened, manifest=replace(opened.manifest, parity=BOUNDS))


def with_bounds(bundle: Bundle, **parity: float) -> Bundle:
    return replace(bundle, manifest=replace(bundle.manifest, parity=parity))


@pytest.mark.parametrize(("milliseconds", "error", "taken", "told"), [
    ((100, 80, 40), 1e-2, "openvino bf16", "40.0 ms a step of two frames, 1.0e-02 off"),
    ((100, 80, 40), 3e-2, "openvino", "openvino bf16 is off by 3.0e-02 (relative l2), allowed are 2e-02"),
    ((100, 80, 40), np.nan, "openvino", "openvino bf16 is off by 1.0e+30"),
    ((100, 80, 79), 1e-2, "openvino", "openvino bf16 takes 79.0 ms a step, not a tenth less than openvino with 80.0"),
    ((100, 91, 95), 1e-2, "onnxruntime", "openvino takes 91.0 ms a step, not a tenth less than onnxruntime"),
    ((100, 200, 60), 1e-2, "openvino bf16", "onnxruntime takes 100.0 ms a step, openvino bf16 60.0"),
])  # fmt: skip
def test_the_fastest_within_its_bound_is_taken_and_the_others_are_told_why_not(
    milliseconds: tuple[float, ...], error: float, taken: str, told: str, lab: Lab, bundle: Bundle, tmp_path: Path
) -> None:
    lab.milliseconds = dict(zip(lab.milliseconds, milliseconds, strict=True))
    lab.error["openvino bf16"] = error
    choice = choose(bundle, kept=tmp_path)
    assert str(choice) == taken
    assert told in choice.told
    assert "measured on 2026-11-27" in choice.told
    others = {"onnxruntime", "openvino", "openvino bf16"} - {taken}
    assert others <= choice.passed_over.keys()
    assert lab.opened == ["onnxruntime", "openvino", "openvino bf16"]


def test_an_engine_in_its_default_precision_is_held_to_the_graphs_bound(
    lab: Lab, bundle: Bundle, tmp_path: Path
) -> None:
    lab.error |= {"openvino": 2e-4, "openvino bf16": 3e-2}
    choice = choose(bundle, kept=tmp_path)
    assert choice.name == "onnxruntime"
    assert "allowed are 1e-04" in choice.passed_over["openvino"]


def test_a_bundle_that_records_no_bound_for_bf16_gets_none(lab: Lab, bundle: Bundle, tmp_path: Path) -> None:
    choice = choose(with_bounds(bundle, bound_graph=1e-4), kept=tmp_path)
    assert str(choice) == "openvino"
    assert "records no bound for openvino bf16; export it again" in choice.told


def test_a_processor_without_bf16_is_not_asked_for_it(
    lab: Lab, bundle: Bundle, tmp_path: Path, processor: Callable[[str], Path]
) -> None:
    processor("avx512f")
    choice = choose(bundle, kept=tmp_path)
    assert str(choice) == "openvino"
    assert lab.opened == ["onnxruntime", "openvino"]
    assert "neither AMX nor AVX512-BF16" in choice.told


@pytest.mark.parametrize(("milliseconds", "error", "taken", "told"), [
    ((100, 60, 80, 55, 56), 1e-6, "native", "native bf16 takes 55.0 ms a step, not a tenth less than native with 60.0"),
    ((100, 60, 80, 50, 40), 1e-6, "openvino bf16", "native bf16 takes 50.0 ms a step, openvino bf16 40.0"),
    ((100, 60, 80, 42, 40), 1e-6, "native bf16", "openvino bf16 takes 40.0 ms a step, not a tenth less"),
    ((100, 95, 99, 98, 98), 1e-6, "onnxruntime", "native takes 95.0 ms a step, not a tenth less than onnxruntime"),
    ((100, 60, 99, 98, 98), 2e-4, "onnxruntime", "native is off by 2.0e-04"),
])  # fmt: skip
def test_native_is_measured_beside_the_others(
    milliseconds: tuple[float, ...], error: float, taken: str, told: str, lab: Lab, bundle: Bundle, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(engines_module, "check_native", lambda folder: None)
    monkeypatch.setattr(engines_module, "multiplies_bf16", lambda: True)
    names = ("onnxruntime", "native", "openvino", "native bf16", "openvino bf16")
    lab.milliseconds = dict(zip(names, milliseconds, strict=True))
    lab.error |= {"native": error}
    choice = choose(bundle, kept=tmp_path)
    assert str(choice) == taken
    assert told in choice.told
    assert lab.opened == list(names)


def test_a_second_opening_measures_nothing(lab: Lab, bundle: Bundle, tmp_path: Path) -> None:
    first = choose(bundle, kept=tmp_path)
    lab.opened.clear()
    assert choose(bundle, kept=tmp_path) == first
    assert choose(bundle, kept=tmp_path, measuring="never") == first
    assert lab.opened == []
    lab.milliseconds["onnxruntime"] = 1
    assert choose(bundle, kept=tmp_path, measuring="again").name == "onnxruntime"
    assert choose(bundle, kept=tmp_path).name == "onnxruntime"


def change(text: str, **values: Any) -> str:
    return json.dumps({**json.loads(text), **values})


def change_figure(text: str, **values: Any) -> str:
    raw = json.loads(text)
    raw["figures"][0] |= values
    return json.dumps(raw)


@pytest.mark.parametrize("spoil", [
    lambda text: text[: len(text) // 2], lambda text: "", lambda text: "[]", lambda text: "[" * 100_000,
    lambda text: change(text, format="posecrafter-measured-9"), lambda text: change(text, origin={}),
    lambda text: change(text, figures=[]), lambda text: change(text, figures=3), lambda text: change(text, failed=[]),
    lambda text: change(text, failed={"openvino bf16": 3}), lambda text: change(text, date=None),
    lambda text: change_figure(text, seconds=0.0), lambda text: change_figure(text, seconds=-1.0),
    lambda text: change_figure(text, seconds="fast"), lambda text: change_figure(text, seconds=float("nan")),
    lambda text: change_figure(text, error=-1.0), lambda text: change_figure(text, engine="abacus"),
    lambda text: change_figure(text, extra=1), lambda text: b"\xff\xfe".decode("latin-1") + text,
])  # fmt: skip
def test_a_damaged_file_is_passed_over_and_replaced(
    spoil: Callable[[str], str], lab: Lab, bundle: Bundle, tmp_path: Path
) -> None:
    first = choose(bundle, kept=tmp_path)
    (path,) = tmp_path.glob("*.json")
    whole = path.read_text()
    path.write_text(spoil(whole))
    assert choose(bundle, kept=tmp_path, measuring="never").why.startswith("this CPU multiplies bf16; not measured yet")
    lab.opened.clear()
    assert choose(bundle, kept=tmp_path) == first
    assert len(lab.opened) == 3
    assert path.read_text() == whole


def test_other_versions_threads_processors_and_graphs_are_measured_for_themselves(
    lab: Lab, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processor: Callable[[str], Path]
) -> None:
    files = {name: replace(entry, sha256="0" * 64) for name, entry in bundle.manifest.files.items()}
    other = replace(bundle, manifest=replace(bundle.manifest, files=files))
    choose(bundle, kept=tmp_path)
    choose(bundle, threads=1, kept=tmp_path)
    choose(other, kept=tmp_path)
    processor(f"{BF16} avx512_vnni")
    choose(bundle, kept=tmp_path)
    monkeypatch.setattr(measured_module, "version", lambda name: "99")
    choose(bundle, kept=tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 5
    assert lab.opened == ["onnxruntime", "openvino", "openvino bf16"] * 5


def test_an_engine_that_cannot_run_is_passed_over_with_its_own_words(lab: Lab, bundle: Bundle, tmp_path: Path) -> None:
    lab.fails["onnxruntime"] = "no such operator"
    choice = choose(bundle, kept=tmp_path)
    assert str(choice) == "openvino bf16"
    assert choice.passed_over["onnxruntime"] == "no such operator"
    lab.opened.clear()
    assert choose(bundle, kept=tmp_path) == choice
    assert lab.opened == []


def test_where_none_can_run_the_processor_decides_and_opening_will_tell(
    lab: Lab, bundle: Bundle, tmp_path: Path
) -> None:
    lab.fails = dict.fromkeys(lab.milliseconds, "no memory")
    choice = choose(bundle, kept=tmp_path)
    assert choice.name == "openvino"
    assert choice.passed_over["openvino"] == "no memory"


def test_a_folder_that_cannot_be_written_costs_only_time(lab: Lab, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert str(choose(bundle, kept=tmp_path / "file" / "engines")) == "openvino bf16"


@pytest.mark.parametrize("largest", [0, 2**30])
def test_nothing_is_measured_unasked_without_a_place_to_keep_it_or_for_a_large_network(
    largest: int, lab: Lab, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose_module, "LARGEST", largest)
    choice = choose(bundle, kept=None if largest else tmp_path)
    assert lab.opened == []
    assert (choice.name, choice.precision) == ("openvino", None)
    assert ("nowhere to keep it" if largest else "larger than 1 GiB; run: posecrafter inspect") in choice.told
    if not largest:
        assert str(choose(bundle, kept=tmp_path, measuring="again")) == "openvino bf16"
        assert str(choose(bundle, kept=tmp_path)) == "openvino bf16"


def test_a_session_opens_what_was_chosen_in_its_precision_and_tells_why(
    lab: Lab, toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Bundle.open
    monkeypatch.setattr(Bundle, "open", lambda folder: with_bounds(read(folder), **BOUNDS))
    monkeypatch.setattr(session_module, "open_engine", lab.open)
    with Session.open(toy_bundle, measured=tmp_path) as session:
        assert session.engine.name == "openvino bf16"
        assert session.choice is not None
        assert "40.0 ms" in session.choice.why
    with Session.open(toy_bundle, "onnxruntime", measured=tmp_path) as session:
        assert session.choice is None


def test_two_processes_at_once_measure_once_and_agree(toy_bundle: Path, tmp_path: Path) -> None:
    program = f"""
import sys, time
from pathlib import Path
from posecrafter.runtime import Bundle
from posecrafter.runtime import measure as module
from posecrafter.runtime.choose import choose
measure = module.measure
def told(*words):
    with open({str(tmp_path / "log")!r}, "a") as file:
        file.write("measured\\n")
    time.sleep(0.5)  # for the others to come to the lock
    return measure(*words)
module.measure = told
bundle = Bundle.open({str(toy_bundle)!r})
choice = choose(bundle, 1, kept=Path({str(tmp_path / "kept")!r}))
print(choice, choice.told)
"""
    started = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    answers = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0] * 3, answers
    assert len({told for told, _ in answers}) == 1
    assert "measured on" in answers[0][0]
    assert (tmp_path / "log").read_text() == "measured\n"
