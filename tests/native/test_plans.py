"""C++ takes the plan and the profile that Python takes, and refuses the others with the same code. No plan is run."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posecrafter.errors import EngineError
from posecrafter.files import sha256_of
from posecrafter.manifest import Manifest
from posecrafter.runtime.engines.built import Built, Part, Profile, choose_profile, read_part, source_hash
from posecrafter.runtime.engines.tensorrt import choose_target, find_records

VERSION = "11.4.0.33"
PROFILES = (
    Profile({"frames": (1, 1, 1), "h": (4, 4, 4), "prompts": (1, 2, 2)}),
    Profile({"frames": (1, 9, 17), "h": (4, 4, 8), "prompts": (1, 2, 2)}),
    Profile({"frames": (1, 9, 129), "h": (4, 4, 64), "prompts": (1, 2, 2)}),
)
PASSES = ({"frames": 1, "h": 4}, {"frames": 17, "h": 4}, {"frames": 2, "h": 16})
"""Of each profile, one that it takes and no tighter one does."""


def write_built(bundle: Path, engine: str, target: str, version: str = VERSION) -> Path:
    """An engine folder whose plan is no plan."""
    folder = bundle / "engines" / f"{engine}-{target}"
    folder.mkdir(parents=True)
    plan = folder / "denoiser.plan"
    plan.write_bytes(target.encode() * 100)
    part = Part(plan.name, plan.stat().st_size, sha256_of(plan), PROFILES, seconds=1.5)
    sources = {"denoiser": source_hash(Manifest.read(bundle), "denoiser")}
    Built(engine, version, target, "fp16", sources, {"any": True}, {"denoiser": (part,)}).write(folder)
    return folder


@pytest.fixture
def compiled(toy_bundle: Path, tmp_path: Path) -> Path:
    """A bundle compiled for two GPUs, and for another engine."""
    bundle = Path(shutil.copytree(toy_bundle, tmp_path / "bundle"))
    for engine, target in (("tensorrt", "sm90"), ("tensorrt", "sm80+sm86"), ("tensorrt-rtx", "any")):
        write_built(bundle, engine, target)
    return bundle


def python(bundle: Path, engine: str, here: str, sizes: dict[str, int]) -> str:
    try:
        folder, record = choose_target(find_records(bundle, engine, VERSION), here, "cure")
        if "denoiser" not in record.graphs:
            return "plan-missing"
        (part,) = record.graphs["denoiser"]
        read_part(folder, part, "cure")
        return f"{folder.name}/{part.file} {choose_profile('denoiser', part.profiles, sizes, 'cure')}"
    except EngineError as error:
        return error.code


def cpp(native: Any, bundle: Path, engine: str, here: str, sizes: dict[str, int]) -> str:
    words = [bundle, engine, VERSION, here, "denoiser", *(f"{name}={size}" for name, size in sizes.items())]
    command = [native.build / "tests/native/native_plans", *words]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (0, 2), done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(("engine", "here", "plan"), [
    ("tensorrt", "sm90", "tensorrt-sm90/denoiser.plan"), ("tensorrt", "sm86", "tensorrt-sm80+sm86/denoiser.plan"),
    ("tensorrt-rtx", "sm120", "tensorrt-rtx-any/denoiser.plan"),
])  # fmt: skip
def test_both_take_the_same_plan_and_profile(engine: str, here: str, plan: str, native: Any, compiled: Path) -> None:
    for profile, sizes in enumerate(PASSES):
        given = {**sizes, "prompts": 2}
        assert cpp(native, compiled, engine, here, given) == f"{plan} {profile}"
        assert python(compiled, engine, here, given) == f"{plan} {profile}"


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        values = json.loads((folder / "engine.json").read_text())
        change(values)
        (folder / "engine.json").write_text(json.dumps(values))

    return apply


REFUSED: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "nothing built": ("plan-missing", shutil.rmtree),
    "no record": ("plan-missing", lambda folder: (folder / "engine.json").unlink()),
    "half a record": ("plan-record", lambda folder: (folder / "engine.json").write_text("{")),
    "another format": ("plan-record", edit(lambda record: record.update(format_version=9))),
    "an unknown field": ("plan-record", edit(lambda record: record.update(colour="red"))),
    "no target": ("plan-record", edit(lambda record: record.pop("target"))),
    "a profile of two numbers": (
        "plan-record",
        edit(lambda record: record["graphs"]["denoiser"][0]["profiles"][0]["sizes"].update(h=[1, 2])),
    ),
    "another version": ("plan-version", edit(lambda record: record.update(version="11.3.0.1"))),
    "another graph": ("plan-stale", edit(lambda record: record["sources"].update(denoiser="0" * 64))),
    "another GPU": ("plan-target", edit(lambda record: record.update(target="sm75"))),
    "no plan of the graph": ("plan-missing", edit(lambda record: record["graphs"].pop("denoiser"))),
    "a plan that is gone": ("plan-missing", lambda folder: (folder / "denoiser.plan").unlink()),
    "a plan elsewhere": (
        "plan-missing",
        edit(lambda record: record["graphs"]["denoiser"][0].update(file="../../manifest.json")),
    ),
    "an altered plan": ("plan-altered", lambda folder: (folder / "denoiser.plan").write_bytes(b"x" * 400)),
    "a cut plan": ("plan-altered", lambda folder: (folder / "denoiser.plan").write_bytes(b"sm")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_for_this_machine_has_one_code_in_both(
    name: str, native: Any, toy_bundle: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(toy_bundle, tmp_path / "bundle"))
    code, change = REFUSED[name]
    change(write_built(bundle, "tensorrt", "sm90"))
    sizes = {"frames": 1, "h": 4, "prompts": 1}
    assert python(bundle, "tensorrt", "sm90", sizes) == code
    assert cpp(native, bundle, "tensorrt", "sm90", sizes) == code


def test_a_pass_that_no_profile_takes_is_refused_in_both(native: Any, compiled: Path) -> None:
    sizes = {"frames": 130, "h": 4, "prompts": 2}
    assert (
        python(compiled, "tensorrt", "sm90", sizes) == cpp(native, compiled, "tensorrt", "sm90", sizes) == "plan-size"
    )
