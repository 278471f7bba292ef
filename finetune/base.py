"""A base model: Stable Diffusion's components and an openpose ControlNet, loaded and checked.

The one door through which fine-tuning and export read a base, so both see the same model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, cast, get_args

import torch
from torch import Tensor

from posecrafter.errors import BaseModelError
from posecrafter.files import sha256_of
from posecrafter.finetune.discriminator import Discriminator
from posecrafter.finetune.network import VideoControlNet, VideoDenoiser, VideoUNet
from posecrafter.finetune.sources import (
    COMPONENTS,
    WEIGHT_STEMS,
    find_component,
    read_config,
    read_weights,
    resolve,
    weight_files,
)
from posecrafter.pose import STYLES
from posecrafter.schedule import Schedule

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel, CLIPTokenizer

Scope = Literal["method", "all"]
LearningSchedule = Literal["constant", "cosine"]
LossWeighting = Literal["uniform", "velocity"]
Optimizer = Literal["adamw", "muon"]
SignalLeak = Literal["frame", "key"]
Network = TypeVar("Network", VideoUNet, VideoControlNet)


@dataclass(frozen=True)
class Defaults:
    """What a base is best used with; posecrafter.json in its folder may say, these are SD 1.5's [C].

    Generation: width and height in pixels, steps, guidance, control_scale, inversion_iterations, keep_mean and
    sampling_steps (ours; 1, False and 0, as many as steps, are the published inversion, editing and sampling).
    Fine-tuning: optimizer, learning_rate, lr_schedule,
    loss_weighting, signal_leak, train_steps, train_seconds (fewer steps where they would take longer; 0 is no limit),
    train (the scope), window (frames of one pass), adapt_decoder (steps; ours, 0 is off), discriminator_weight (in
    these; 0 is off).
    """

    width: int = 512
    height: int = 512
    steps: int = 50
    guidance: float = 12.0
    control_scale: float = 1.0
    inversion_iterations: int = 1
    keep_mean: bool = False
    sampling_steps: int = 0
    optimizer: Optimizer = "adamw"
    learning_rate: float = 3e-5
    lr_schedule: LearningSchedule = "constant"
    loss_weighting: LossWeighting = "uniform"
    signal_leak: SignalLeak = "frame"
    train_steps: int = 500
    train_seconds: float = 0.0
    train: Scope = "method"
    window: int = 8
    adapt_decoder: int = 0
    discriminator_weight: float = 0.0

    @classmethod
    def from_config(cls, config: Mapping[str, Any], path: Path) -> Self:
        """Raises: BaseModelError "base-defaults" naming an unknown option or a value of the wrong type."""
        kinds = {field.name: type(field.default) for field in fields(cls)}
        for name, value in config.items():
            if name not in kinds:
                raise BaseModelError("base-defaults", f"{path}: unknown default {name!r}; known: {', '.join(kinds)}")
            allowed = (int, float) if kinds[name] is float else kinds[name]
            if not isinstance(value, allowed) or isinstance(value, bool) != (kinds[name] is bool):
                raise BaseModelError("base-defaults", f"{path}: {name} is {value!r}, expected {kinds[name].__name__}")
        literals = {
            "train": Scope,
            "optimizer": Optimizer,
            "lr_schedule": LearningSchedule,
            "loss_weighting": LossWeighting,
            "signal_leak": SignalLeak,
        }
        for name, literal in literals.items():
            choices = get_args(literal)
            if config.get(name, choices[0]) not in choices:
                expected = " or ".join(repr(choice) for choice in choices)
                raise BaseModelError("base-defaults", f"{path}: {name} is {config[name]!r}, expected {expected}")
        return replace(cls(), **config)


@dataclass(frozen=True)
class Base:
    """A loaded base. Networks are in evaluation mode on `device`, in `dtype`; nothing requires gradients.

    discriminator: for tuning the decoder, in fp32; None where the base's folder has none.
    """

    source: str
    controlnet: str | None
    sha256: str
    denoiser: VideoDenoiser
    vae: AutoencoderKL
    discriminator: Discriminator | None
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    schedule: Schedule
    defaults: Defaults
    pose_style: str
    device: torch.device
    dtype: torch.dtype

    @property
    def latent_channels(self) -> int:
        return self.denoiser.unet.size.in_channels

    @property
    def factor(self) -> int:
        """Pixels per latent cell, along each side."""
        return int(2 ** (len(self.vae.config["block_out_channels"]) - 1))

    @property
    def scaling_factor(self) -> float:
        return float(self.vae.config["scaling_factor"])

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """The text encoder's last hidden states, float [B, T, D], padded and cut to T tokens."""
        ids = self.tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        ).input_ids
        return cast(Tensor, self.text_encoder(ids.to(self.device))[0])

    @torch.no_grad()
    def encode_frames(self, frames: Tensor) -> Tensor:
        """uint8 [F, H, W, 3] -> scaled latents float32 [F, L, h, w]: the posterior's mode, times scaling_factor."""
        pixels = frames.to(self.device).permute(0, 3, 1, 2).to(self.dtype) / 127.5 - 1
        return self.vae.encode(pixels).latent_dist.mode().float() * self.scaling_factor

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Scaled latents [F, L, h, w] -> pixels [F, 3, H, W] in about -1..1, in the decoder's precision."""
        return cast(Tensor, self.vae.decode(latents.to(self.dtype) / self.scaling_factor, return_dict=False)[0])


def load_base(
    source: str | Path,
    controlnet: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Base:
    """Load every component of a base.

    source: a folder in diffusers' layout, or a hub id "org/name" (downloaded once, by the hub's own cache).
    controlnet: its folder or hub id; without one, `controlnet/` of the base. The UNet may be a ControlVideo one.
    Raises: BaseModelError "base-missing", "base-offline", "base-component-missing", "base-not-safetensors",
    "base-unreadable", "base-unsupported", "base-mismatch", "base-defaults", "base-scheduler".
    """
    folders = _component_folders(str(source), None if controlnet is None else str(controlnet))
    device = torch.device(device)
    defaults, pose_style = _read_defaults(folders["unet"].parent / "posecrafter.json")
    unet = _load_network(VideoUNet, "unet", folders["unet"], dtype)
    control = _load_network(VideoControlNet, "controlnet", folders["controlnet"], dtype)
    vae, text_encoder, tokenizer = _load_library_models(folders, dtype)
    _check_sizes(unet, control, vae, text_encoder, tokenizer)
    discriminator = Discriminator.load(folders["unet"].parent)
    for module in (unet, control, vae, text_encoder, *([discriminator] if discriminator else [])):
        module.requires_grad_(False).eval().to(device=device)
    return Base(
        source=str(source),
        controlnet=None if controlnet is None else str(controlnet),
        sha256=_fingerprint(folders),
        denoiser=VideoDenoiser(unet, control),
        vae=vae,
        discriminator=discriminator,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        schedule=Schedule.from_config(read_config(folders["scheduler"] / "scheduler_config.json")),
        defaults=defaults,
        pose_style=pose_style,
        device=device,
        dtype=dtype,
    )


def read_base_defaults(source: str | Path, controlnet: str | Path | None = None) -> Defaults:
    """Only posecrafter.json of a base, before anything heavy is loaded; a hub id is downloaded as `load_base` would."""
    return _read_defaults(_source_folder(str(source), with_controlnet=controlnet is None) / "posecrafter.json")[0]


def _source_folder(source: str, with_controlnet: bool) -> Path:
    return resolve(source, {name: name for name in COMPONENTS if with_controlnet or name != "controlnet"})


def _component_folders(source: str, controlnet: str | None) -> dict[str, Path]:
    root = _source_folder(source, with_controlnet=controlnet is None)
    folders = {name: root / name for name in COMPONENTS}
    if controlnet is not None:
        folders["controlnet"] = resolve(controlnet, {"controlnet": ""})
    return {name: find_component(name, root, folder) for name, folder in folders.items()}


def _read_defaults(path: Path) -> tuple[Defaults, str]:
    if not path.is_file():
        return Defaults(), "v1.1"
    config = read_config(path)
    style = config.get("pose_style", "v1.1")
    if style not in STYLES:
        raise BaseModelError("base-defaults", f"{path}: pose_style is {style!r}, expected one of {', '.join(STYLES)}")
    return Defaults.from_config(cast(Mapping[str, Any], config.get("defaults", {})), path), str(style)


def _load_network(kind: type[Network], name: str, folder: Path, dtype: torch.dtype) -> Network:
    config = read_config(folder / "config.json")
    try:
        with torch.device("meta"):
            network = kind.from_config(config)
    except KeyError as error:
        raise BaseModelError(
            "base-unsupported", f"{folder / 'config.json'} lacks {error}; use an SD 1.x base"
        ) from error
    network.to_empty(device="cpu").load_base(read_weights(name, folder))
    return network.to(dtype)


def _load_library_models(
    folders: Mapping[str, Path], dtype: torch.dtype
) -> tuple[AutoencoderKL, CLIPTextModel, CLIPTokenizer]:
    """Autoencoder, text encoder and tokenizer stay diffusers' and transformers' own, read by their own loaders."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel, CLIPTokenizer
    from transformers.tokenization_utils_base import VERY_LARGE_INTEGER
    from transformers.utils import logging

    def load(kind: Any, name: str, **options: Any) -> Any:
        try:
            return kind.from_pretrained(folders[name], local_files_only=True, **options)
        except Exception as error:  # a damaged vocabulary is a bare Exception
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            message = f"{folders[name]} cannot be read ({reason}); download it again"
            raise BaseModelError("base-unreadable", message) from error

    def load_weights(kind: Any, name: str) -> Any:
        variant = "fp16" if all(".fp16." in file.name for file in weight_files(name, folders[name])) else None
        options = {"variant": variant, "use_safetensors": True, "low_cpu_mem_usage": False}
        return load(kind, name, torch_dtype=dtype, **options)

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        vae, text_encoder = load_weights(AutoencoderKL, "vae"), load_weights(CLIPTextModel, "text_encoder")
        tokenizer = load(CLIPTokenizer, "tokenizer")
        if tokenizer.model_max_length == VERY_LARGE_INTEGER:  # none was told
            tokenizer.model_max_length = text_encoder.config.max_position_embeddings
        return vae, text_encoder, tokenizer
    finally:
        if shown:
            logging.enable_progress_bar()


def _check_sizes(
    unet: VideoUNet,
    control: VideoControlNet,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
) -> None:
    pairs = (
        ("latent channels", "the UNet", unet.size.in_channels, "the VAE", vae.config["latent_channels"]),
        ("output channels", "the UNet", unet.conv_out.out_channels, "the VAE", vae.config["latent_channels"]),
        ("text width", "the UNet", unet.size.text_width, "the text encoder", text_encoder.config.hidden_size),
        ("block widths", "the UNet", unet.size.widths, "the ControlNet", control.size.widths),
        ("input channels", "the UNet", unet.size.in_channels, "the ControlNet", control.size.in_channels),
        ("text width", "the UNet", unet.size.text_width, "the ControlNet", control.size.text_width),
        ("words", "the tokenizer", len(tokenizer), "the text encoder", text_encoder.config.vocab_size),
    )
    for what, first, a, second, b in pairs:
        if a != b:
            raise BaseModelError(
                "base-mismatch", f"{first} has {what} {a}, {second} {b}; use components of one base family"
            )
    length, positions = tokenizer.model_max_length, text_encoder.config.max_position_embeddings
    if not 0 < length <= positions:
        raise BaseModelError(
            "base-mismatch",
            f"the tokenizer's model_max_length is {length}, the text encoder has {positions} positions; "
            "use components of one base family",
        )


def _fingerprint(folders: Mapping[str, Path]) -> str:
    """One hash over the weight files of every component: the same wherever the folders lie."""
    total = hashlib.sha256()
    for name in sorted(WEIGHT_STEMS):
        for file in weight_files(name, folders[name]):
            total.update(f"{name}/{file.name}:{sha256_of(file)}\n".encode())
    return total.hexdigest()
