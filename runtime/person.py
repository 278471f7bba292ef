"""A person's pack: weights that a shared bundle's graphs take as inputs, and what a session needs beside them.

    pack/  person.json  weights.safetensors  poses.json  latents.safetensors  text.safetensors

person.json names the base and holds every other file's size and hash, so a pack can lie in the bundle or anywhere else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from posecrafter.errors import BundleError
from posecrafter.files import read_json, sha256_of, write_json
from posecrafter.manifest import FileEntry, Manifest
from posecrafter.pose import read_poses
from posecrafter.runtime.bundle import Bundle

FORMAT = "posecrafter-pack-1"
RECORD = "person.json"
WEIGHTS = "weights.safetensors"
FOLDER = "persons"

Arrays = dict[str, dict[str, NDArray[Any]]]


@dataclass(frozen=True)
class Pack:
    """person.json. files: name -> size and hash. parity: as a manifest's, for the bundle it was exported into."""

    base_sha256: str
    training_frames: int
    fps: float
    prompt: str
    width: int
    height: int
    files: Mapping[str, FileEntry]
    parity: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        write_json(folder / RECORD, {"format": FORMAT, **asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read and verify a pack's folder. Raises: BundleError "pack-missing", "pack-format", "pack-hash"."""
        path = folder / RECORD
        if not path.is_file():
            raise BundleError("pack-missing", f"{folder} is no person's pack; make one: posecrafter export --person")
        try:
            raw = read_json(path)
            if raw.pop("format") != FORMAT:
                raise ValueError("another format")
            files = {name: FileEntry(**entry) for name, entry in raw.pop("files").items()}
            pack = cls(**raw, files=files)
        except (ValueError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise BundleError(
                "pack-format", f"{path} is not a pack's record ({error}); export the person again"
            ) from error
        for name in ("poses.json", "latents.safetensors", "text.safetensors", WEIGHTS):
            entry, file = pack.files.get(name), folder / name
            if entry is None or not file.is_file():
                raise BundleError("pack-missing", f"{folder} lacks {name}; copy the pack whole or export it again")
            if file.stat().st_size != entry.bytes or sha256_of(file) != entry.sha256:
                raise BundleError("pack-hash", f"{file} was altered; copy the pack again or export it again")
        return pack


def find_pack(bundle: Path, person: str | Path) -> Path:
    """A person's folder: by name in the bundle, or a path. Raises: BundleError "pack-missing" naming who is there."""
    inside = bundle / FOLDER / str(person)
    if Path(person).name == str(person) and (inside / RECORD).is_file():
        return inside
    if (Path(person) / RECORD).is_file():
        return Path(person)
    there = sorted(path.parent.name for path in (bundle / FOLDER).glob(f"*/{RECORD}"))
    raise BundleError("pack-missing", f"{bundle} has no person {str(person)!r}; it has: {', '.join(there) or 'none'}")


def read_person(bundle: Bundle, folder: Path) -> tuple[Bundle, Arrays]:
    """The bundle as this person's, and the weights to bind.

    Raises: BundleError "pack-missing", "pack-format", "pack-hash", "pack-base", "pack-weights", "bundle-person".
    """
    pack, m = Pack.read(folder), bundle.manifest
    own = m.provenance.get("base_sha256")
    if pack.base_sha256 != own:
        raise BundleError(
            "pack-base",
            f"{folder} belongs to the base {pack.base_sha256[:12]}, the bundle to {str(own)[:12]}; export "
            "the person into this bundle, or open the other one",
        )
    manifest = replace(
        m,
        training_frames=pack.training_frames,
        fps=pack.fps,
        text=replace(m.text, prompt=pack.prompt),
        defaults=replace(m.defaults, width=pack.width, height=pack.height),
        parity=pack.parity,
        # What tells one person's inverted frames from another's.
        files={**m.files, **{f"person/{name}": entry for name, entry in pack.files.items()}},
    )
    latents, text = load_file(folder / "latents.safetensors"), load_file(folder / "text.safetensors")
    person = Bundle(
        manifest,
        read_poses(folder / "poses.json"),
        latents["latents"].astype(np.float32),
        text["prompt"].astype(np.float32),
        text["empty"].astype(np.float32),
        bundle.folder,
    )
    person.check()
    return person, read_weights(folder / WEIGHTS, m)


def read_weights(path: Path, manifest: Manifest) -> Arrays:
    """A person's matrices by graph and input, as the manifest's `shared` says.

    Raises: BundleError "pack-weights" for a missing, extra or misshapen tensor, another type, or values not finite.
    """
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise BundleError("pack-weights", f"{path} is not a safetensors file ({error}); export it again") from error
    dtype = np.dtype(np.float16 if manifest.precision == "fp16" else np.float32)
    wanted = {f"{graph}/{name}": tuple(shape) for graph, own in manifest.shared.items() for name, shape in own.items()}
    for name in sorted(wanted.keys() ^ tensors.keys()):
        lacks = "lacks" if name in wanted else "has a tensor that the graphs do not know:"
        raise BundleError("pack-weights", f"{path} {lacks} {name}; export the person again")
    arrays: Arrays = {graph: {} for graph in manifest.shared}
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name] or tensor.dtype != dtype:
            raise BundleError(
                "pack-weights",
                f"{path}: {name} is {tensor.dtype} {list(tensor.shape)}, the graphs take {dtype} {list(wanted[name])}; "
                "export the person again",
            )
        if not np.isfinite(tensor).all():
            raise BundleError("pack-weights", f"{path}: {name} holds values that are not finite; tune the person again")
        graph, _, own = name.partition("/")
        arrays[graph][own] = tensor
    return arrays
