"""What `compile` leaves in engines/<engine>-<target>/: files for one machine's library, and the record of them.

A built file is native code to its library, so nothing is handed over before the record says that it was made from this
bundle's graphs, by this version of the library, for this device, and its bytes have the recorded hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from posecrafter.errors import EngineError
from posecrafter.files import read_json, write_json
from posecrafter.manifest import Manifest

FORMAT = "posecrafter-engine"
FORMAT_VERSION = 1
RECORD = "engine.json"
FOLDER = "engines"

Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Profile:
    """Sizes that a built graph takes: each dynamic dimension's smallest, likeliest and largest."""

    sizes: Mapping[str, tuple[int, int, int]]

    def takes(self, sizes: Sizes) -> bool:
        """Whether every size lies between the ends."""
        return all(low <= sizes[name] <= high for name, (low, _, high) in self.sizes.items())

    def __str__(self) -> str:
        words = [f"{name} {a}" if a == c else f"{name} {a}..{c}" for name, (a, _, c) in self.sizes.items()]
        return ", ".join(words)


@dataclass(frozen=True)
class Part:
    """One built file. layers: of the network that was given to the library; fused and decomposed: attentions in it."""

    file: str
    bytes: int
    sha256: str
    profiles: tuple[Profile, ...]
    seconds: float
    layers: int = 0
    fused: int = 0
    decomposed: int = 0


@dataclass(frozen=True)
class Built:
    """An engine folder's record, engine.json.

    version: of the library. target: what it was built for. precision: of the network. sources: graph -> hash of the
    bundle's files that it was built from. options: what `compile` was asked for. parity: graph -> relative l2 distance
    from ONNX Runtime, where this machine could measure it.
    """

    engine: str
    version: str
    target: str
    precision: str
    sources: Mapping[str, str]
    options: Mapping[str, Any]
    graphs: Mapping[str, tuple[Part, ...]]
    parity: Mapping[str, float] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write engine.json, atomically; the last file of its folder."""
        write_json(folder / RECORD, {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises: EngineError "plan-record"."""
        path = folder / RECORD
        try:
            raw = read_json(path)
            if raw["format"] != FORMAT or raw["format_version"] != FORMAT_VERSION:
                raise ValueError(f"format {raw['format']!r} version {raw['format_version']!r}")
            values = {name: value for name, value in raw.items() if name not in ("format", "format_version")}
            values["graphs"] = {name: tuple(_part(part) for part in parts) for name, parts in values["graphs"].items()}
            return cls(**values)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise EngineError(
                "plan-record",
                f"{path} is not the record of a compiled engine ({error}); remove its folder, compile again",
            ) from error

    @property
    def files(self) -> list[Part]:
        return [part for parts in self.graphs.values() for part in parts]

    def check(self, manifest: Manifest, version: str, cure: str) -> None:
        """That it was built from these graphs by this version of its library.

        cure: the command that mends it. Raises: EngineError "plan-version", "plan-stale".
        """
        if self.version != version:
            raise EngineError(
                "plan-version",
                f"engine '{self.engine}' was built for {self.target} with version {self.version}; this machine has "
                f"{version}. Run: {cure}",
            )
        for graph, built_from in self.sources.items():
            found = source_hash(manifest, graph)
            if found != built_from:
                raise EngineError(
                    "plan-stale",
                    f"engine '{self.engine}': '{graph}' was built from a graph with hash {built_from[:12]}, "
                    f"the bundle's has {found[:12]}. Run: {cure}",
                )


def read_part(folder: Path, part: Part, cure: str) -> bytes:
    """The bytes of a built file, which have the recorded size and hash.

    Raises: EngineError "plan-missing", "plan-altered".
    """
    path = folder / part.file
    if path.parent != folder or not path.is_file():
        raise EngineError("plan-missing", f"{folder} lacks {part.file}. Run: {cure}")
    data = path.read_bytes()
    if len(data) != part.bytes:
        raise EngineError("plan-altered", f"{path} has {len(data)} bytes, its record says {part.bytes}. Run: {cure}")
    digest = hashlib.sha256(data).hexdigest()
    if digest != part.sha256:
        raise EngineError(
            "plan-altered", f"{path} was altered (sha256 {digest[:12]}, expected {part.sha256[:12]}). Run: {cure}"
        )
    return data


def choose_profile(graph: str, profiles: Sequence[Profile], sizes: Sizes, cure: str) -> int:
    """The index of the tightest profile that takes `sizes`. Raises: EngineError "plan-size" naming those that exist."""
    fitting = [index for index, profile in enumerate(profiles) if profile.takes(sizes)]
    if not fitting:
        wanted = ", ".join(f"{name} {size}" for name, size in sizes.items())
        there = "; ".join(str(profile) for profile in profiles)
        raise EngineError("plan-size", f"'{graph}' was not built for {wanted}, but for: {there}. Run: {cure}")
    return min(fitting, key=lambda index: sum(high - low for low, _, high in profiles[index].sizes.values()))


def source_hash(manifest: Manifest, graph: str) -> str:
    """One hash over a graph's files, from the manifest's; the CPU's copy is not among them."""
    names = [f"graphs/{graph}.onnx", f"graphs/{graph}.weights"]
    lines = [f"{name}:{manifest.files[name].sha256}\n" for name in names if name in manifest.files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def built_folders(bundle: Path, engine: str) -> list[Path]:
    """The folders that `compile` made for an engine in a bundle, sorted by name."""
    folders = sorted((bundle / FOLDER).glob(f"{engine}-*")) if (bundle / FOLDER).is_dir() else []
    return [folder for folder in folders if (folder / RECORD).is_file() and _engine_of(folder) == engine]


def _engine_of(folder: Path) -> str:
    return "tensorrt-rtx" if folder.name.startswith("tensorrt-rtx-") else folder.name.split("-")[0]


def _part(raw: Mapping[str, Any]) -> Part:
    profiles = tuple(
        Profile({name: (int(low), int(likely), int(high)) for name, (low, likely, high) in profile["sizes"].items()})
        for profile in raw["profiles"]
    )
    return Part(**{**raw, "profiles": profiles})
