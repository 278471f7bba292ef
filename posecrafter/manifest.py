"""The bundle's manifest: what a bundle is, what it can do, and the hash of every file in it.

The manifest is written last and read first. Reading checks format, presence, containment, sizes and hashes, so that
no parser sees a byte that the exporter did not write.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from posecrafter.errors import BundleError
from posecrafter.fields import LARGEST_COUNT, LARGEST_SIDE, Bounds, as_object, is_whole, read_fields
from posecrafter.files import read_json, sha256_of, write_json
from posecrafter.schedule import Schedule

FORMAT = "posecrafter-bundle"
FORMAT_VERSION = 1
NAME = "manifest.json"
KINDS = ("merged", "shared")
MOST_ITERATIONS = 16
"""Of an inverse step."""
SEALED = ("graphs", "person")
"""Folders of a bundle in which every file is listed; what is compiled and other people's packs lie elsewhere."""


@dataclass(frozen=True)
class Range:
    """Allowed values of one dimension, both ends included, in steps of `multiple`."""

    min: int
    max: int
    multiple: int = 1

    def __contains__(self, value: int) -> bool:
        return self.min <= value <= self.max and value % self.multiple == 0

    def divided(self, by: int) -> Range:
        """The same in units of `by`, which divides all three: pixels as latent cells."""
        return Range(self.min // by, self.max // by, self.multiple // by)


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
    """What a request gets when it does not say: sizes in pixels, solver steps, guidance, ControlNet's scale,
    evaluations of an inverse step, whether editing keeps a frame's mean, solver steps of sampling where they are fewer
    (older manifests do not tell: 1, false, 0 for as many)."""

    width: int
    height: int
    steps: int
    guidance: float
    control_scale: float
    inversion_iterations: int = 1
    keep_mean: bool = False
    sampling_steps: int = 0


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
        except OSError as error:
            raise BundleError("bundle-manifest", f"cannot read {path}: {error.strerror}") from error
        except ValueError as error:
            raise BundleError(
                "bundle-manifest", f"{path} is not valid JSON ({error}); export the bundle again"
            ) from error
        return cls._parse(raw, path)

    @classmethod
    def _parse(cls, raw: Any, path: Path) -> Self:
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            raise BundleError("bundle-manifest", f"{path} is not a PoseCrafter manifest; export the bundle again")
        version = raw.get("format_version")
        if version != FORMAT_VERSION or version is True:
            cure = "update posecrafter" if isinstance(version, int) and version > FORMAT_VERSION else "export it again"
            raise BundleError(
                "bundle-format", f"{path} has format version {version}; this release reads {FORMAT_VERSION}: {cure}"
            )
        values = {name: value for name, value in raw.items() if name not in ("format", "format_version")}
        try:
            for name, kind in _PARTS.items():
                if name in values:
                    values[name] = read_fields(kind, values[name], f"{path}: {name}", _BOUNDS.get(kind))
            values["files"] = read_entries(values.get("files"), f"{path}: files")
            values["shared"] = _read_shared(values.get("shared", {}), f"{path}: shared")
            manifest = read_fields(cls, values, str(path))
            if manifest.kind not in KINDS:
                raise ValueError(f"{path} is of the unknown kind {manifest.kind!r}")
            if manifest.frames.max < 2:
                raise ValueError(f"{path} allows no frame beside the reference")
        except ValueError as error:
            raise BundleError("bundle-manifest", f"{error}; export it again") from error
        return manifest

    def verify(self, folder: Path | str, under: str = "") -> None:
        """Check that every listed file lies inside `folder`, is there, and has its size and hash, and that no other
        file lies beside them: nobody vouches for it, and a reader might take it for the bundle's.

        under: only files whose path starts so ("person/" saves hashing the graphs when none of them will be opened).
        Raises: BundleError "bundle-path", "bundle-file-missing", "bundle-hash", "bundle-file-unlisted".
        """
        root = Path(folder).resolve()
        for name, entry in self.files.items():
            if name.startswith(under):
                try:
                    _verify_file(root, name, entry, folder)
                except OSError as error:
                    raise BundleError(
                        "bundle-file-missing", f"{folder}: cannot read {name[:200]!r}: {error.strerror}"
                    ) from error
        for name in _present(root):
            if name.startswith(under) and name not in self.files:
                raise BundleError(
                    "bundle-file-unlisted", f"{folder} holds {name}, which its manifest does not list; remove that file"
                )

    @staticmethod
    def entries(folder: Path | str) -> dict[str, FileEntry]:
        """Size and hash of every file now in `folder` but the manifest, sorted by path."""
        root = Path(folder)
        paths = sorted(path for path in root.rglob("*") if path.is_file() and path.name != NAME)
        return {p.relative_to(root).as_posix(): FileEntry(p.stat().st_size, sha256_of(p)) for p in paths}


_PARTS: Mapping[str, type[Range | Latents | Text | Schedule | Defaults]] = {
    **dict.fromkeys(("width", "height", "frames", "prompts"), Range),
    "latents": Latents,
    "text": Text,
    "schedule": Schedule,
    "defaults": Defaults,
}
_BOUNDS: Mapping[type, Bounds] = {
    Latents: {"channels": (1, 4096), "factor": (1, 256)},
    Schedule: {"steps_offset": (0, LARGEST_COUNT)},
    Defaults: {
        "width": (1, LARGEST_SIDE),
        "height": (1, LARGEST_SIDE),
        "inversion_iterations": (1, MOST_ITERATIONS),
        "sampling_steps": (0, LARGEST_COUNT),
    },
}


def read_entries(raw: Any, where: str) -> dict[str, FileEntry]:
    """Sizes and hashes by path, as manifests and packs list them. Raises: ValueError."""
    bounds = {"bytes": (0, 2**63 - 1)}
    return {
        name: read_fields(FileEntry, entry, f"{where}: {name}", bounds) for name, entry in as_object(raw, where).items()
    }


def _read_shared(raw: Any, where: str) -> dict[str, dict[str, list[int]]]:
    for graph, inputs in as_object(raw, where).items():
        for name, shape in as_object(inputs, f"{where}: {graph}").items():
            if not isinstance(shape, list) or not all(is_whole(side, 0, 2**31 - 1) for side in shape):
                raise ValueError(f"{where}: {graph} has a shape of something else than sizes: {name}")
    return dict(raw)


def _present(root: Path) -> Iterator[str]:
    """Every file in the sealed folders; a name with a dot in front is the system's."""
    for part in SEALED:
        for path in sorted((root / part).rglob("*")):
            if not path.is_dir() and not path.name.startswith("."):
                yield path.relative_to(root).as_posix()


def _verify_file(root: Path, name: str, entry: FileEntry, folder: Path | str) -> None:
    """One file of `Manifest.verify`. Raises: BundleError; OSError for a file that cannot be read."""
    if "\0" in name or not (root / name).resolve().is_relative_to(root):
        raise BundleError("bundle-path", f"{folder}: the manifest lists {name}, which lies outside the bundle")
    path = root / name
    if not path.is_file():
        raise BundleError("bundle-file-missing", f"{folder} lacks {name}; copy the bundle whole or export it again")
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
