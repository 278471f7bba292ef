"""A bundle in memory: manifest, the person's poses and latents, stored text. Verified before anything is parsed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from posecrafter.errors import BundleError
from posecrafter.manifest import Manifest
from posecrafter.pose import PoseTrack, read_poses

Floats = NDArray[np.float32]

UNREADABLE = (SafetensorError, OSError, TypeError, AttributeError)
"""What safetensors raises for a file that is none; the last two for types that numpy lacks if nobody taught it them:
bfloat16, floats of 8 bits."""


@dataclass(frozen=True)
class Bundle:
    """What a session needs besides the graphs.

    poses: the N training poses on the bundle's canvas. latents: float32 [N, L, h, w], scaled.
    prompt, empty: stored text embeddings, float32 [T, D]. folder: where the graphs are; None for one held in memory.
    """

    manifest: Manifest
    poses: PoseTrack
    latents: Floats
    prompt: Floats
    empty: Floats
    folder: Path | None = None

    @classmethod
    def open(cls, folder: Path | str, graphs: bool = True) -> Bundle:
        """Read and verify a bundle folder. graphs: hash these too; a plan, which opens none, need not wait for it.

        Raises: BundleError "bundle-missing", "bundle-manifest", "bundle-format", "bundle-path", "bundle-file-missing",
        "bundle-file-unlisted", "bundle-hash", "bundle-person".
        """
        root = Path(folder)
        manifest = Manifest.read(root)
        shared = ["person/weights.safetensors"] if manifest.kind == "shared" else []
        for name in ["person/poses.json", "person/latents.safetensors", "person/text.safetensors", *shared]:
            if name not in manifest.files:
                raise BundleError("bundle-file-missing", f"{root}: the manifest does not list {name}; export it again")
        manifest.verify(root, "" if graphs else "person/")
        latents = read_tensors(root / "person/latents.safetensors", "latents")["latents"]
        text = read_tensors(root / "person/text.safetensors", "prompt", "empty")
        bundle = cls(manifest, read_poses(root / "person/poses.json"), latents, text["prompt"], text["empty"], root)
        bundle.check()
        return bundle

    def check(self) -> None:
        """Raises: BundleError "bundle-person" where poses, latents or text do not have the manifest's shapes."""
        m = self.manifest
        cells = (m.defaults.height // m.latents.factor, m.defaults.width // m.latents.factor)
        expected = {
            "latents": (self.latents.shape, (m.training_frames, m.latents.channels, *cells)),
            "poses": ((len(self.poses),), (m.training_frames,)),
            "the poses' canvas": ((self.poses.width, self.poses.height), (m.defaults.width, m.defaults.height)),
            "the prompt's embedding": (self.prompt.shape, (m.text.tokens, m.text.width)),
            "the empty prompt's embedding": (self.empty.shape, (m.text.tokens, m.text.width)),
        }
        for name, (found, wanted) in expected.items():
            if tuple(found) != wanted:
                raise BundleError(
                    "bundle-person", f"{name}: {tuple(found)}, the manifest says {wanted}; export it again"
                )


def read_tensors(path: Path, *names: str) -> dict[str, Floats]:
    """Named tensors of a safetensors file, float32. Raises: BundleError "bundle-person"."""
    try:
        tensors = load_file(path)
    except UNREADABLE as error:
        raise BundleError("bundle-person", f"{path} is not a safetensors file ({error}); export it again") from error
    missing = [name for name in names if name not in tensors or tensors[name].dtype.kind != "f"]
    if missing:
        raise BundleError("bundle-person", f"{path} has no tensor {missing[0]!r} of floats; export it again")
    return {name: tensors[name].astype(np.float32, copy=False) for name in names}
