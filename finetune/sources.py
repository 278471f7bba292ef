"""Where a base model's files are: a local folder in diffusers' layout, or a repository on the Hugging Face hub.

Only safetensors weights are read; a pickle can run code and is refused.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from posecrafter.errors import BaseModelError

WEIGHT_STEMS = {
    "unet": "diffusion_pytorch_model",
    "controlnet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
"""The components that have weights, and how diffusers names their files."""

POCKET = "pocket"
"""The source that means the tiny base which the package carries."""

_PLAIN = {
    "tokenizer": (("tokenizer.json",), ("vocab.json", "merges.txt")),
    "scheduler": (("scheduler_config.json",),),
}
"""The components without weights, and what a folder of theirs must hold: one of these sets of files, whole. From a
tokenizer's configuration alone transformers makes a vocabulary of two words, and says nothing."""

COMPONENTS = (*WEIGHT_STEMS, *_PLAIN)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_CLASSES = {
    "unet": "UNet2DConditionModel",
    "controlnet": "ControlNetModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
}


def find_component(name: str, source: Path, folder: Path) -> Path:
    """`folder`, if component `name` of `source` is complete there: configuration or words, and its weights if any.

    Raises: BaseModelError "base-component-missing", "base-not-safetensors".
    """
    wanted = _PLAIN.get(name, (("config.json",),))
    if not any(all((folder / file).is_file() for file in files) for files in wanted):
        cure = "pass --controlnet with its folder or hub id" if name == "controlnet" else "complete the download"
        lacks = ", or ".join(" and ".join(files) for files in wanted)
        raise BaseModelError(
            "base-component-missing", f"the base {source} has no {name} ({folder} lacks {lacks}); {cure}"
        )
    if name in WEIGHT_STEMS:
        weight_files(name, folder)
    return folder


def weight_files(name: str, folder: Path) -> list[Path]:
    """The safetensors files of a component: one, or its shards; full precision before the fp16 variant.

    Raises: BaseModelError "base-component-missing", "base-not-safetensors".
    """
    stem = WEIGHT_STEMS[name]
    for choice in (stem, f"{stem}.fp16"):
        whole = folder / f"{choice}.safetensors"
        if whole.is_file():
            return [whole]
        variant = choice.removeprefix(stem)
        index = folder / f"{stem}.safetensors.index{variant}.json"
        if index.is_file():
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            for shard in shards:
                if not (folder / Path(shard).name).is_file():
                    raise BaseModelError("base-component-missing", f"{folder} lacks {shard}, which {index.name} names")
            return [folder / Path(shard).name for shard in shards]
    if any(folder.glob("*.bin")):
        kind, package = _CLASSES[name], "transformers" if name == "text_encoder" else "diffusers"
        raise BaseModelError(
            "base-not-safetensors",
            f"{folder} holds only .bin weights, which can run code; if you trust them, convert once: python -c "
            f'"from {package} import {kind} as M; M.from_pretrained({str(folder)!r}, use_safetensors=False)'
            f'.save_pretrained({str(folder)!r}, safe_serialization=True)"',
        )
    raise BaseModelError("base-component-missing", f"{folder} holds no {stem}.safetensors; complete the download")


def read_weights(name: str, folder: Path) -> dict[str, Tensor]:
    """Every tensor of a component, on the CPU, in its files' precision. Raises: BaseModelError "base-unreadable"."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    state: dict[str, Tensor] = {}
    for file in weight_files(name, folder):
        try:
            state.update(load_file(file))
        except SafetensorError as error:
            message = f"{file} is not a whole safetensors file ({error}); download it again"
            raise BaseModelError("base-unreadable", message) from error
    return state


def read_config(path: Path) -> Mapping[str, object]:
    """A component's JSON configuration. Raises: BaseModelError "base-unreadable"."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BaseModelError("base-unreadable", f"{path} is not valid JSON ({error}); download it again") from error
    if not isinstance(config, dict):
        raise BaseModelError("base-unreadable", f"{path} holds no JSON object; download it again")
    return config


def resolve(source: str, components: Mapping[str, str]) -> Path:
    """The folder of `source`: itself, or the hub's snapshot, downloaded when the cache lacks a component.

    components: name -> its folder inside the source ("" is the root, as repositories of one model have it).
    Raises: BaseModelError "base-missing", "base-offline".
    """
    folder = _pocket() if source == POCKET else Path(source)
    if folder.is_dir():
        return folder
    if source == POCKET or folder.exists() or not _HUB_ID.fullmatch(source):
        raise BaseModelError(
            "base-missing",
            f"there is no base folder {source}; pass a folder in diffusers' layout, or a hub id org/name",
        )
    return _cached(source, components) or _download(source, tuple(components.values()))


def _pocket() -> Path:
    """Where the package keeps its tiny base. Looked up, not imported: the folder holds data for this."""
    spec = importlib.util.find_spec("posecrafter.pocket")
    return Path(spec.origin if spec and spec.origin else "pocket").parent / "weights"


def _cached(source: str, components: Mapping[str, str]) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        root = Path(snapshot_download(source, local_files_only=True))
        for name, inside in components.items():
            find_component(name, root, root / inside)
    except (LocalEntryNotFoundError, BaseModelError):
        return None
    return root


def _download(source: str, folders: tuple[str, ...]) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        wanted = wanted_files(source, HfApi().list_repo_files(source), folders)
        return Path(snapshot_download(source, allow_patterns=wanted))
    except BaseModelError:
        raise
    except HfHubHTTPError as error:
        message = f"the hub refuses {source}: {str(error).splitlines()[0]}; check the id, or pass a local folder"
        raise BaseModelError("base-missing", message) from error
    except Exception as error:  # the network's absence has many forms
        raise BaseModelError(
            "base-offline",
            f"{source} is not on this machine and the hub cannot be reached ({type(error).__name__}); "
            "download it elsewhere and pass its folder",
        ) from error


def wanted_files(source: str, files: list[str], folders: tuple[str, ...]) -> list[str]:
    """Of a repository's files: JSON and text of the components' folders, and one safetensors variant each.

    Raises: BaseModelError "base-component-missing", "base-not-safetensors", before gigabytes are downloaded in vain.
    """
    wanted = [file for file in files if file == "posecrafter.json"]
    for folder in folders:
        prefix = f"{folder}/" if folder else ""
        inside = [file for file in files if file.startswith(prefix) and "/" not in file[len(prefix) :]]
        names = {Path(file).name: file for file in inside}
        if not names:
            cure = "pass --controlnet with a folder or hub id" if folder == "controlnet" else "use a complete base"
            raise BaseModelError("base-component-missing", f"the base {source} has no {folder}; {cure}")
        stems = (WEIGHT_STEMS.get(folder, "diffusion_pytorch_model"),)
        weights = [n for n in names if n.startswith(stems) and n.endswith(".safetensors") and ".non_ema" not in n]
        if not weights and (folder in WEIGHT_STEMS or not folder):
            raise BaseModelError(
                "base-not-safetensors",
                f"{prefix or source} on the hub holds no safetensors weights; download {source} and pass its folder: "
                "the message then says how to convert it",
            )
        full = [name for name in weights if ".fp16" not in name]
        wanted += [names[name] for name in names if name.endswith((".json", ".txt")) or name in (full or weights)]
    return wanted
