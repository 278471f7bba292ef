from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posecrafter.manifest import FileEntry
from posecrafter.runtime import Bundle, Request, Session, inverted
from posecrafter.runtime.inverted import Inverted, inversion_key

Engines = Callable[[Any], Any]
SHAPE = (1, 4, 8, 8)


def by_time(x: np.ndarray, timestep: int, text: np.ndarray) -> np.ndarray:
    return np.full(x.shape, np.sin(timestep) + text.mean(), np.float32)


@pytest.fixture
def hashed(memory_bundle: Bundle) -> Bundle:
    """The bundle in memory, with the file hashes that one on disk has."""
    names = ("graphs/pose_encoder.onnx", "graphs/denoiser.weights", "graphs/vae_decoder.onnx", "person/poses.json")
    files = {name: FileEntry(1, name) for name in names}
    return replace(memory_bundle, manifest=replace(memory_bundle.manifest, files=files))


def latents(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


def test_a_repeated_request_inverts_nothing_in_another_session(hashed: Bundle, engine: Engines, tmp_path: Path) -> None:
    request = Request(poses=hashed.poses[:3])
    fakes = [engine(by_time), engine(by_time)]
    first, second = (Session(hashed, fake, tmp_path).render(request).frames for fake in fakes)
    assert [frames for frames, _ in fakes[0].passes()] == [1] * 4 + [4] * 4
    assert [frames for frames, _ in fakes[1].passes()] == [4] * 4
    np.testing.assert_array_equal(first, second)


def test_forgetting_inverts_again_and_changes_nothing(memory_bundle: Bundle, engine: Engines) -> None:
    fake = engine(by_time)
    session, request = Session(memory_bundle, fake), Request(poses=memory_bundle.poses[:3])
    first = session.render(request).frames
    session.forget()
    np.testing.assert_array_equal(session.render(request).frames, first)
    assert [frames for frames, _ in fake.passes()].count(1) == 8


def test_the_key_changes_with_everything_that_inversion_reads(
    hashed: Bundle, engine: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(hashed, engine(by_time))
    poses = hashed.poses[:2]
    plan = session.plan(Request(poses=poses))
    plain = inversion_key(hashed.manifest, "engine", plan, hashed.prompt)
    assert inversion_key(hashed.manifest, "engine", plan, hashed.prompt.copy()) == plain
    with monkeypatch.context() as older:
        older.setattr(inverted, "_REVISION", inverted._REVISION - 1)
        assert inversion_key(hashed.manifest, "engine", plan, hashed.prompt) != plain
    files = hashed.manifest.files
    others = {name: replace(hashed.manifest, files={**files, name: FileEntry(1, "other")}) for name in files}
    wider = replace(plan, width=72)
    shorter = replace(plan, inversion_steps=tuple(replace(step, b=0.5) for step in plan.inversion_steps))
    keys = [
        plain,
        inversion_key(hashed.manifest, "other", plan, hashed.prompt),
        *(
            inversion_key(others[name], "engine", plan, hashed.prompt)
            for name in files
            if name != "graphs/vae_decoder.onnx"
        ),
        inversion_key(replace(hashed.manifest, pose_style="v1.0"), "engine", plan, hashed.prompt),
        inversion_key(hashed.manifest, "engine", plan, hashed.prompt + 1),
        *(
            inversion_key(hashed.manifest, "engine", other, hashed.prompt)
            for other in (
                wider,
                shorter,
                session.plan(Request(poses=poses, steps=5)),
                session.plan(Request(poses=poses, control_scale=0.5)),
                session.plan(Request(poses=poses, reference=7)),
                session.plan(Request(poses=poses, inversion_iterations=2)),
            )
        ),
    ]
    assert len(set(keys)) == len(keys)
    assert inversion_key(others["graphs/vae_decoder.onnx"], "engine", plan, hashed.prompt) == plain
    guided = session.plan(Request(poses=poses, guidance=9.0))
    assert inversion_key(hashed.manifest, "engine", guided, hashed.prompt) == plain


def test_a_bundle_without_hashes_keeps_nothing_in_the_folder(
    memory_bundle: Bundle, engine: Engines, tmp_path: Path
) -> None:
    Session(memory_bundle, engine(by_time), tmp_path).render(Request(poses=memory_bundle.poses[:1]))
    assert list(tmp_path.iterdir()) == []


def test_memory_holds_the_eight_frames_used_last() -> None:
    cache = Inverted()
    for key in range(8):
        cache.put(str(key), latents(key))
    np.testing.assert_array_equal(cache.get("0", SHAPE), latents(0))
    cache.put("8", latents(8))
    assert [key for key in range(9) if cache.get(str(key), SHAPE) is None] == [1]


def test_a_folder_stays_within_its_limit_and_the_longest_unused_go_first(tmp_path: Path) -> None:
    size = 128 + latents(0).nbytes
    cache = Inverted(tmp_path, limit=3 * size)
    for index, key in enumerate(("a", "b", "c")):
        cache.put(key, latents(index))
        os.utime(tmp_path / f"{key}.npy", (index, index))
    assert Inverted(tmp_path).get("a", SHAPE) is not None  # used just now
    cache.put("d", latents(3))
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["a", "c", "d"]


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"not an array at all"])
def test_a_damaged_entry_is_a_miss(damage: bytes, tmp_path: Path) -> None:
    Inverted(tmp_path).put("a", latents(0))
    (tmp_path / "a.npy").write_bytes(damage)
    assert Inverted(tmp_path).get("a", SHAPE) is None


def test_an_entry_of_another_shape_or_not_finite_is_a_miss(tmp_path: Path) -> None:
    Inverted(tmp_path).put("a", latents(0))
    assert Inverted(tmp_path).get("a", (1, 4, 8, 9)) is None
    Inverted(tmp_path).put("b", np.full(SHAPE, np.nan, np.float32))
    assert Inverted(tmp_path).get("b", SHAPE) is None
    np.save(tmp_path / "c.npy", latents(0).astype(np.float64))
    assert Inverted(tmp_path).get("c", SHAPE) is None


def test_an_entry_that_is_a_program_does_not_run(tmp_path: Path) -> None:
    class Planted:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    (tmp_path / "a.npy").write_bytes(pickle.dumps(Planted()))
    assert Inverted(tmp_path).get("a", SHAPE) is None
    assert not (tmp_path / "ran").exists()


def test_a_folder_that_cannot_be_made_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = Inverted(tmp_path / "file" / "cache")
    cache.put("a", latents(0))
    assert cache.get("a", SHAPE) is not None


def test_processes_that_write_at_once_leave_whole_entries_within_the_limit(tmp_path: Path) -> None:
    program = f"""
import sys
import numpy as np
from pathlib import Path
from posecrafter.runtime.inverted import Inverted
for round in range(40):
    cache = Inverted(Path({str(tmp_path)!r}), limit=6000)
    key = str((int(sys.argv[1]) + round) % 7)
    found = cache.get(key, (1, 4, 8, 8))
    assert found is None or (found == int(key)).all()
    cache.put(key, np.full((1, 4, 8, 8), int(key), np.float32))
"""
    running = [subprocess.Popen([sys.executable, "-c", program, str(number)]) for number in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    entries = list(tmp_path.iterdir())
    assert sum(path.stat().st_size for path in entries) <= 6000
    assert all((np.load(path) == int(path.stem)).all() for path in entries)
