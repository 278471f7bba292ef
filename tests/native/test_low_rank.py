"""Low-rank packs: C++ makes the matrices that Python makes of them, and refuses what Python refuses.

What they render is compared in test_same_result.py.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from posecrafter.errors import PoseCrafterError
from posecrafter.files import read_json, write_json
from posecrafter.manifest import Manifest
from posecrafter.runtime import Session
from posecrafter.runtime.low_rank import BASE, DOWN, UP, LowRank, multiply_out
from posecrafter.runtime.person import FOLDER, WEIGHTS

Tensors = dict[str, Any]
Merge = Callable[[Tensors, Tensors, LowRank], Tensors]


@pytest.fixture
def merge(native: Any, tmp_path: Path) -> Merge:
    """What C++ makes of a pack's tensors and the base's matrices."""

    def run(tensors: Tensors, base: Tensors, low_rank: LowRank) -> Tensors:
        files = [tmp_path / name for name in ("weights", "base", "out")]
        save_file(tensors, files[0])
        save_file(base, files[1])
        made = multiply_out(files[0], tensors, low_rank, files[1])  # for names, shapes and types alone
        words = [*files[:2], low_rank.rank, low_rank.scale, files[2]]
        command = [native.build / "tests/native/native_merge", *words]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        data, taken, start = files[2].read_bytes(), {}, 0
        for name in sorted(made):
            end = start + made[name].nbytes
            taken[name] = np.frombuffer(data[start:end], made[name].dtype).reshape(made[name].shape)
            start = end
        assert start == len(data)
        return taken

    return run


def factors(layer: str, down: Any, up: Any) -> Tensors:
    return {f"{layer}{DOWN}": np.ascontiguousarray(down), f"{layer}{UP}": np.ascontiguousarray(up)}


@pytest.mark.parametrize("thin", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_matrices_are_pythons(dtype: type, thin: type, merge: Merge, tmp_path: Path) -> None:
    """Sums of doubles in another order: what is rounded from them is the same but for one number in a thousand."""
    random, low_rank = np.random.default_rng(0), LowRank(5, 0.7)
    base = {f"g/{key}.weight": random.standard_normal((33, 17)).astype(dtype) for key in "ab"}
    pack: Tensors = {"g/a.bias": random.standard_normal(33).astype(dtype)}
    for key in "ab":
        shapes = ((5, 17), (33, 5))
        pack |= factors(f"g/{key}", *(random.standard_normal(shape).astype(thin) for shape in shapes))
    made = merge(pack, base, low_rank)
    expected = multiply_out(tmp_path / "pack", pack, low_rank, tmp_path / "base")
    assert made.keys() == expected.keys() == {"g/a.bias", "g/a.weight", "g/b.weight"}
    for name, array in expected.items():
        np.testing.assert_array_max_ulp(made[name], array, maxulp=1)
        assert (made[name] != array).mean() <= 0.001


def test_every_half_and_every_rounding_to_a_half_is_numpys(merge: Merge) -> None:
    """Products of one term are exact in float64, so nothing but the conversions can differ."""
    halves = np.arange(65536, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    wide = np.sort(halves[np.signbit(halves) == 0]).astype(np.float32)
    between = (wide[1:] + wide[:-1]) / 2  # ties
    beyond = np.float32([65519.996, 65520.0, 65536.0, 1e38, 2.0**-25, 2.0**-26, 1e-40])
    near = [np.nextafter(between, np.float32(end)) for end in (-np.inf, np.inf)]
    values = np.concatenate([between, *near, beyond])
    values = np.concatenate([values, -values])
    base = {"g/a.weight": halves[None], "g/b.weight": np.zeros((len(values), 1), np.float16)}
    one, none = np.ones((1, 1), np.float32), np.zeros((1, len(halves)), np.float32)
    pack = factors("g/a", none, one) | factors("g/b", one, values[:, None])
    made = merge(pack, base, LowRank(1, 1.0))
    np.testing.assert_array_equal(made["g/a.weight"], halves[None])
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    np.testing.assert_array_equal(made["g/b.weight"][:, 0].view(np.uint16), expected.view(np.uint16))


def refusal(bundle: Path, person: str) -> tuple[str, str]:
    """Code and message with which Python refuses a person, or nothing."""
    try:
        with Session.open(bundle, engine="onnxruntime", threads=1) as session:
            session.load_person(person)
    except PoseCrafterError as error:
        return error.code, error.message
    return "", ""


def reseal(pack: Path, **changes: Any) -> None:
    """Write a pack's record anew, so that only what was spoilt is wrong."""
    entries = {name: entry for name, entry in Manifest.entries(pack).items() if name != "person.json"}
    files = {name: {"bytes": entry.bytes, "sha256": entry.sha256} for name, entry in entries.items()}
    write_json(pack / "person.json", {**read_json(pack / "person.json"), "files": files, **changes})


def first(tensors: Tensors, end: str) -> str:
    return next(name for name in sorted(tensors) if name.endswith(end))


def without(tensors: Tensors, end: str) -> None:
    del tensors[first(tensors, end)]


def put(tensors: Tensors, end: str, change: Callable[[Any], Any]) -> None:
    name = first(tensors, end)
    tensors[name] = np.ascontiguousarray(change(tensors[name]))


FULL = ".attn_temp.to_out.0.weight"
FACTORS: dict[str, Callable[[Tensors], Any]] = {
    "no up": lambda t: without(t, UP),
    "no down": lambda t: without(t, DOWN),
    "neither": lambda t: (without(t, UP), without(t, DOWN)),
    "another rank": lambda t: (put(t, UP, lambda a: a[:, :2]), put(t, DOWN, lambda a: a[:2])),
    "turned": lambda t: put(t, DOWN, lambda a: a.T),
    "one side too many": lambda t: put(t, UP, lambda a: a[..., None]),
    "whole numbers": lambda t: put(t, DOWN, lambda a: a.astype(np.int16)),
    "not a number": lambda t: put(t, DOWN, lambda a: a * np.float16(np.nan)),
    "infinite": lambda t: put(t, UP, lambda a: a + np.float16(np.inf)),
    "beyond a half": lambda t: (
        put(t, UP, lambda a: np.full_like(a, 3000)),
        put(t, DOWN, lambda a: np.full_like(a, 3000)),
    ),
    "beyond a float": lambda t: (
        put(t, UP, lambda a: np.full(a.shape, 1e200)),
        put(t, DOWN, lambda a: np.full(a.shape, 1e100)),
    ),
    "in full and as factors": lambda t: t.update({first(t, UP).replace(UP, ".weight"): np.zeros((64, 64), np.float16)}),
    "factors of nothing": lambda t: t.update(factors("denoiser/x", np.zeros((3, 4)), np.zeros((4, 3)))),
    "factors of what must be full": lambda t: t.update(
        factors(first(t, FULL).removesuffix(".weight"), np.zeros((3, 64)), np.zeros((64, 3)))
    ),
    "a full one less": lambda t: without(t, FULL),
    "a full one too many": lambda t: t.update({"denoiser/x": np.zeros(3, np.float16)}),
    "a full one not finite": lambda t: put(t, FULL, lambda a: a * np.float16(np.nan)),
    "a full one of another type": lambda t: put(t, FULL, lambda a: a.astype(np.float32)),
}


@pytest.fixture
def copied(half_people: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(half_people, tmp_path / "bundle"))


@pytest.mark.parametrize("name", FACTORS)
def test_spoilt_factors_have_one_code_in_both(name: str, library: Any, copied: Path) -> None:
    pack = copied / FOLDER / "thin"
    assert library.open(copied, "thin") == ""
    tensors = load_file(pack / WEIGHTS)
    FACTORS[name](tensors)
    save_file(tensors, pack / WEIGHTS)
    reseal(pack)
    assert refusal(copied, "thin")[0] == "pack-weights"
    assert library.open(copied, "thin") == "pack-weights"


def test_factors_of_a_type_that_numpy_lacks_are_refused_by_both(library: Any, copied: Path) -> None:
    path = copied / FOLDER / "thin" / WEIGHTS
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].replace(b'"F16"', b'"BF16"')
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    reseal(path.parent)
    assert refusal(copied, "thin")[0] == library.open(copied, "thin") == "pack-weights"


@pytest.mark.parametrize("changes", [
    {"low_rank": {"rank": 0, "scale": 1.0}}, {"low_rank": {"rank": 10**7, "scale": 1.0}}, {"low_rank": None},
    {"low_rank": {"rank": True, "scale": 1.0}}, {"low_rank": {"rank": 3}}, {"low_rank": [3, 1.5]},
    {"low_rank": {"rank": 3, "scale": "1.5"}}, {"low_rank": {"rank": 3, "scale": 1.5, "alpha": 4.5}},
    {"format": "posecrafter-pack-1"}, {"format": "posecrafter-pack-low-rank-2"},
])  # fmt: skip
def test_a_spoilt_record_has_one_code_in_both(changes: dict[str, Any], library: Any, copied: Path) -> None:
    reseal(copied / FOLDER / "thin", **changes)
    assert refusal(copied, "thin")[0] == library.open(copied, "thin") == "pack-format"


def test_a_record_without_rank_and_scale_is_refused_by_both(library: Any, copied: Path) -> None:
    path = copied / FOLDER / "thin" / "person.json"
    record = read_json(path)
    del record["low_rank"]
    write_json(path, record)
    assert refusal(copied, "thin")[0] == library.open(copied, "thin") == "pack-format"


def edit_base(bundle: Path, change: Callable[[Tensors], Any]) -> None:
    """Alter the base's matrices, so that the manifest vouches for it."""
    tensors = load_file(bundle / BASE)
    change(tensors)
    save_file(tensors, bundle / BASE)
    vouch(bundle)


def vouch(bundle: Path) -> None:
    files = {name: entry for name, entry in Manifest.entries(bundle).items() if not name.startswith(FOLDER)}
    replace(Manifest.read(bundle), files=files).write(bundle)


BASES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "none": ("bundle-file-missing", lambda bundle: ((bundle / BASE).unlink(), vouch(bundle))),
    "not listed": ("bundle-file-unlisted", lambda bundle: _unlist(bundle)),
    "altered": ("bundle-hash", lambda bundle: (bundle / BASE).write_bytes(b"other bytes")),
    "no tensors": ("bundle-person", lambda bundle: ((bundle / BASE).write_bytes(b"other bytes"), vouch(bundle))),
    "a matrix less": ("pack-weights", lambda bundle: edit_base(bundle, lambda t: without(t, ".weight"))),
    "another size": ("pack-weights", lambda bundle: edit_base(bundle, lambda t: put(t, ".weight", lambda a: a[:-1]))),
    "no matrix": ("bundle-person", lambda bundle: edit_base(bundle, lambda t: put(t, ".weight", lambda a: a[0]))),
    "doubles": ("bundle-person", lambda bundle: edit_base(bundle, lambda t: put(t, ".weight", np.float64))),
    "floats": ("pack-weights", lambda bundle: edit_base(bundle, lambda t: put(t, ".weight", np.float32))),
}


def _unlist(bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    replace(manifest, files={name: entry for name, entry in manifest.files.items() if name != BASE}).write(bundle)


@pytest.mark.parametrize("name", BASES)
def test_a_spoilt_base_has_one_code_in_both(name: str, library: Any, copied: Path) -> None:
    code, change = BASES[name]
    change(copied)
    assert refusal(copied, "thin")[0] == code
    assert library.open(copied, "thin") == code
