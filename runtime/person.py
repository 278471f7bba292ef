"""A person's pack: weights that a shared bundle's graphs take as inputs, and what a session needs beside them.

    pack/  person.json  weights.safetensors  poses.json  latents.safetensors  text.safetensors

person.json names the base and holds every other file's size and hash, so a pack can lie in the bundle or anywhere else.
A pack of low-rank updates has a format of its own, so that a reader that knows full matrices only refuses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from posecrafter.errors import BundleError
from posecrafter.fields import LARGEST_SIDE, as_object, read_fields
from posecrafter.files import read_json, sha256_of, write_json
from posecrafter.manifest import FileEntry, Manifest, read_entries
from posecrafter.pose import read_poses
from posecrafter.runtime.bundle import UNREADABLE, Bundle, read_tensors
from posecrafter.runtime.engines.base import Engine
from posecrafter.runtime.engines.bound import BoundEngine, upload_weights
from posecrafter.runtime.low_rank import BASE, LowRank, multiply_out

FORMAT = "posecrafter-pack-1"
LOW_RANK_FORMAT = "posecrafter-pack-low-rank-1"
RECORD = "person.json"
WEIGHTS = "weights.safetensors"
FOLDER = "persons"

Arrays = dict[str, dict[str, NDArray[Any]]]


@dataclass(frozen=True)
class Pack:
    """person.json. files: name -> size and hash. parity: as a manifest's, for the bundle it was exported into.

    low_rank: of the updates that `weights.safetensors` holds; None where it holds full matrices alone.
    """

    base_sha256: str
    training_frames: int
    fps: float
    prompt: str
    width: int
    height: int
    files: Mapping[str, FileEntry]
    parity: Mapping[str, Any] = field(default_factory=dict)
    low_rank: LowRank | None = None

    @property
    def kind(self) -> str:
        """In words: "full matrices", or "low rank 16"."""
        return "full matrices" if self.low_rank is None else f"low rank {self.low_rank.rank}"

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(entry.bytes for entry in self.files.values())

    def write(self, folder: Path) -> None:
        record = {"format": FORMAT if self.low_rank is None else LOW_RANK_FORMAT, **asdict(self)}
        if self.low_rank is None:
            del record["low_rank"]
        write_json(folder / RECORD, record)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read and verify a pack's folder. Raises: BundleError "pack-missing", "pack-format", "pack-hash"."""
        path = folder / RECORD
        if not path.is_file():
            raise BundleError("pack-missing", f"{folder} is no person's pack; make one: posecrafter export --person")
        try:
            raw = as_object(read_json(path), str(path))
            known = raw.pop("format", None)
            if known not in (FORMAT, LOW_RANK_FORMAT) or (known == LOW_RANK_FORMAT) != ("low_rank" in raw):
                raise ValueError("another format")
            if known == LOW_RANK_FORMAT:
                raw["low_rank"] = read_fields(LowRank, raw["low_rank"], f"{path}: low_rank")
            raw["files"] = read_entries(raw.get("files"), f"{path}: files")
            pack = read_fields(cls, raw, str(path), {"width": (1, LARGEST_SIDE), "height": (1, LARGEST_SIDE)})
        except (OSError, ValueError) as error:
            raise BundleError(
                "pack-format", f"{path} is not a pack's record ({error}); export the person again"
            ) from error
        for name in ("poses.json", "latents.safetensors", "text.safetensors", WEIGHTS):
            entry, file = pack.files.get(name), folder / name
            if entry is None or not file.is_file():
                raise BundleError("pack-missing", f"{folder} lacks {name}; copy the pack whole or export it again")
            try:
                whole = file.stat().st_size == entry.bytes and sha256_of(file) == entry.sha256
            except OSError as error:
                raise BundleError("pack-missing", f"cannot read {file}: {error.strerror}") from error
            if not whole:
                raise BundleError("pack-hash", f"{file} was altered; copy the pack again or export it again")
        return pack


def find_pack(bundle: Path, person: str | Path) -> Path:
    """A person's folder: by name in the bundle, or a path. Raises: BundleError "pack-missing" naming who is there."""
    inside = bundle / FOLDER / str(person)
    if Path(person).name == str(person) and (inside / RECORD).is_file():
        return inside
    if (Path(person) / RECORD).is_file():
        return Path(person)
    there = ", ".join(people_of(bundle)) or "none"
    raise BundleError("pack-missing", f"{bundle} has no person {str(person)!r}; it has: {there}")


def people_of(bundle: Path) -> list[str]:
    """The names of the people whose packs lie in a shared bundle, without its own person."""
    return sorted(path.parent.name for path in (bundle / FOLDER).glob(f"*/{RECORD}"))


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
    latents = read_tensors(folder / "latents.safetensors", "latents")["latents"]
    text = read_tensors(folder / "text.safetensors", "prompt", "empty")
    person = Bundle(
        manifest,
        read_poses(folder / "poses.json"),
        latents,
        text["prompt"],
        text["empty"],
        bundle.folder,
    )
    person.check()
    return person, read_weights(folder / WEIGHTS, m, pack.low_rank, bundle.folder)


def bind_own(engine: Engine, bundle: Bundle) -> Engine:
    """The engine as the bundle's own person's: where the graphs take weights as inputs, these are bound to them."""
    if bundle.manifest.kind != "shared" or bundle.folder is None:
        return engine
    weights = read_weights(bundle.folder / "person" / WEIGHTS, bundle.manifest)
    return BoundEngine(engine, upload_weights(engine, weights))


def read_weights(path: Path, manifest: Manifest, low_rank: LowRank | None = None, bundle: Path | None = None) -> Arrays:
    """A person's matrices by graph and input, as the manifest's `shared` says.

    low_rank: of the updates in the file, which are added to the base's matrices in the folder `bundle`.
    Raises: BundleError "pack-weights" for a missing, extra or misshapen tensor, another type, or values not finite;
    "bundle-file-missing" where a bundle holds no base's matrices.
    """
    try:
        tensors = load_file(path)
    except UNREADABLE as error:
        raise BundleError("pack-weights", f"{path} is not a safetensors file ({error}); export it again") from error
    if low_rank is not None:
        if bundle is None or BASE not in manifest.files:
            raise BundleError(
                "bundle-file-missing",
                f"the bundle has no {BASE}, which {path} builds on; export the bundle again, or the person with "
                "--full-matrices",
            )
        tensors = multiply_out(path, tensors, low_rank, bundle / BASE)
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
