"""The bundle's manifest: what a bundle is, what it can do, and the hash of every file in it.

The manifest is written last and read first. Reading checks format, presence, containment, sizes and hashes, so that
no parser sees a byte that the exporter did not write.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from posecrafter.errors import BundleError
from posecrafter.files import read_json, sha256_of, write_json
from posecrafter.schedule import Schedule

FORMAT = "posecrafter-bundle"
FORMAT_VERSION = 1
NAME = "manifest.json"


@dataclass(frozen=True)
class Range:
    """Allowed values of one dimension, both ends included, in steps of `multiple`."""

    min: int
    max: int
    multiple: int = 1

    def __contains__(self, value: int) -> bool:
        return self.min <= value <= self.max and value % self.multiple == 0


@dataclass(frozen=True)
class Latents:
    """z = scaling_factor * encode(frame): [channels, H / factor, W / factor]."""

    channels: int
    factor: int
    scaling_factor: float


@dataclass(frozen=True)
class Text:
    """The text encoder's shape, and the prompt the person was tuned with (its embedding is stored)."""

    tokens: int
    width: int
    prompt: str


@dataclass(frozen=True)
class Defaults:
    """What a request gets when it does not say: sizes in pixels, solver steps, guidance, ControlNet's scale."""

    width: int
    height: int
    steps: int
    guidance: float
    control_scale: float


@dataclass(frozen=True)
class FileEntry:
    """A bundle file's size in bytes and its SHA-256."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """manifest.json as a value.

    fps: of the training video. network_width: channels of the network's first level, which memory estimates scale with.
    kind: "merged", or "shared": graphs take the person's weights as inputs; shared: graph -> input -> its shape.
    parity: figures of the export's comparison with PyTorch. files: each path inside the bundle -> its size and hash.
    """

    precision: str
    width: Range
    height: Range
    frames: Range
    prompts: Range
    latents: Latents
    text: Text
    schedule: Schedule
    defaults: Defaults
    pose_style: str
    fps: float
    training_frames: int
    network_width: int
    kind: str = "merged"
    parity: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    shared: Mapping[str, Mapping[str, list[int]]] = field(default_factory=dict)
    files: Mapping[str, FileEntry] = field(default_factory=dict)

    def write(self, folder: Path | str) -> None:
        """Write manifest.json, atomically; it must be the last file of the bundle."""
        write_json(Path(folder) / NAME, {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)})

    @classmethod
    def read(cls, folder: Path | str) -> Self:
        """Parse a bundle's manifest.

        Raises: BundleError "bundle-missing", "bundle-manifest", "bundle-format".
        """
        path = Path(folder) / NAME
        if not path.is_file():
            raise BundleError(
                "bundle-missing", f"{folder} is not a bundle: it has no {NAME}. Make one: posecrafter export"
            )
        try:
            raw = read_json(path)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise BundleError(
                "bundle-manifest", f"{path} is not valid JSON ({error}); export the bundle again"
            ) from error
        return cls._parse(raw, path)

    @classmethod
    def _parse(cls, raw: Any, path: Path) -> Self:
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            raise BundleError("bundle-manifest", f"{path} is not a PoseCrafter manifest; export the bundle again")
        version = raw.get("format_version")
        if version != FORMAT_VERSION:
            cure = "update posecrafter" if isinstance(version, int) and version > FORMAT_VERSION else "export it again"
            raise BundleError(
                "bundle-format", f"{path} has format version {version}; this release reads {FORMAT_VERSION}: {cure}"
            )
        values = {name: value for name, value in raw.items() if name not in ("format", "format_version")}
        parts: dict[str, type] = {
            **dict.fromkeys(("width", "height", "frames", "prompts"), Range),
            "latents": Latents,
            "text": Text,
            "schedule": Schedule,
            "defaults": Defaults,
        }
        try:
            for name, kind in parts.items():
                values[name] = kind(**values[name])
            values["files"] = {name: FileEntry(**entry) for name, entry in values["files"].items()}
            return cls(**values)
        except (KeyError, TypeError, AttributeError) as error:
            raise BundleError(
                "bundle-manifest", f"{path} lacks or misnames a field ({error}); export it again"
            ) from error

    def verify(self, folder: Path | str, under: str = "") -> None:
        """Check that every listed file lies inside `folder`, is there, and has its size and hash.

        under: only files whose path starts so ("person/" saves hashing the graphs when none of them will be opened).
        Raises: BundleError "bundle-path", "bundle-file-missing", "bundle-hash".
        """
        root = Path(folder).resolve()
        for name, entry in self.files.items():
            if not name.startswith(under):
                continue
            path = (root / name).resolve()
            if not path.is_relative_to(root):
                raise BundleError("bundle-path", f"{folder}: the manifest lists {name}, which lies outside the bundle")
            if not path.is_file():
                raise BundleError(
                    "bundle-file-missing", f"{folder} lacks {name}; copy the bundle whole or export it again"
                )
            size = path.stat().st_size
            if size != entry.bytes:
                raise BundleError(
                    "bundle-hash", f"{folder}: {name} has {size} bytes, the manifest says {entry.bytes}; copy it again"
                )
            digest = sha256_of(path)
            if digest != entry.sha256:
                raise BundleError(
                    "bundle-hash",
                    f"{folder}: {name} was altered (sha256 {digest[:12]}, expected {entry.sha256[:12]}); copy it again",
                )

    @staticmethod
    def entries(folder: Path | str) -> dict[str, FileEntry]:
        """Size and hash of every file now in `folder` but the manifest, sorted by path."""
        root = Path(folder)
        paths = sorted(path for path in root.rglob("*") if path.is_file() and path.name != NAME)
        return {p.relative_to(root).as_posix(): FileEntry(p.stat().st_size, sha256_of(p)) for p in paths}
