"""One command a stage: `python -m posecrafter.pocket.train data|autoencoder|decoder|diffusion|save`.

`data` fills the cache folder, `autoencoder`, `decoder` and `diffusion` train there within --minutes and can go on with
--resume, `save` writes the averaged weights in diffusers' format. The same commands use a GPU where there is one; on a
borrowed one, `diffusion --output FOLDER` leaves a whole base with every checkpoint. `decoder --output FOLDER` leaves an
autoencoder and a discriminator there, which the networks of the same encoder go on with.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import os
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from transformers import CLIPTokenizer

from posecrafter.finetune.discriminator import Discriminator
from posecrafter.pocket import autoencoder as first_stage
from posecrafter.pocket import data, diffusion, weights, words
from posecrafter.pocket.decoder import DecoderStage, decoder_of
from posecrafter.pocket.diffusion import SMALL
from posecrafter.pocket.training import Run, averages, learn

HELD_OUT = 64


def main() -> None:
    """Parse the command line and run one stage."""
    parser = argparse.ArgumentParser(prog="python -m posecrafter.pocket.train", description=__doc__)
    parser.add_argument("stage", choices=["data", "autoencoder", "decoder", "diffusion", "save"])
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "posecrafter-pocket")
    parser.add_argument("--minutes", type=float, default=30.0, help="time budget, earlier runs included")
    parser.add_argument("--resume", action="store_true", help="go on from the stage's checkpoint")
    parser.add_argument(
        "--base",
        type=Path,
        help="a saved base: `autoencoder` and `decoder` go on from its autoencoder, `diffusion` from its networks with "
        "its autoencoder and its tokenizer",
    )
    parser.add_argument("--batch", type=int, default=8, help="pictures a step and worker; a multiple of four")
    parser.add_argument("--workers", type=int, default=1, help="processes on shared weights (CPU only)")
    parser.add_argument("--threads", type=int, default=1, help="threads a process")
    parser.add_argument("--every", type=float, default=240.0, help="seconds between checkpoints")
    parser.add_argument("--squares", type=int, default=9000)
    parser.add_argument("--people", type=int, default=5000, help="rendered people, four pictures of 128x128 each")
    parser.add_argument("--larger", type=int, default=1000, help="rendered people, four pictures of 256x256 each")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="that render")
    parser.add_argument(
        "--output",
        type=Path,
        help="where `save` writes, by default into the package; `decoder` and `diffusion` write there too, with every "
        "checkpoint",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.backends.cudnn.benchmark = True
    stages = {"data": _data, "autoencoder": _autoencoder, "decoder": _decoder, "diffusion": _diffusion, "save": _save}
    stages[arguments.stage](arguments)


def _data(arguments: argparse.Namespace) -> None:
    """Half of the time budget for each size, at most."""
    data.fetch_squares(arguments.cache, arguments.squares)
    for size, people in ((SMALL, arguments.people), (2 * SMALL, arguments.larger)):
        data.render(arguments.cache, people, size, arguments.processes, 30 * arguments.minutes)


def _autoencoder(arguments: argparse.Namespace) -> None:
    start = AutoencoderKL.from_pretrained(arguments.base / "vae").float() if arguments.base else None
    stage = first_stage.AutoencoderStage(*_pictures(arguments), arguments.batch, _device(), start)
    learn(_run(arguments), stage, arguments.workers)


def _decoder(arguments: argparse.Namespace) -> None:
    discriminator = Discriminator.load(arguments.base) if arguments.base else None
    autoencoder = _trained_autoencoder(arguments)
    stage = DecoderStage(*_pictures(arguments), arguments.batch, autoencoder, discriminator)
    written = partial(_save_decoder, arguments.cache, arguments.output, autoencoder) if arguments.output else None
    learn(_run(arguments), stage, arguments.workers, written)


def _save_decoder(cache: Path, folder: Path, autoencoder: AutoencoderKL) -> None:
    autoencoder, discriminator = _averaged_decoder(cache, autoencoder)
    weights.save_autoencoder(folder, autoencoder)
    discriminator.save(folder)


def _averaged_decoder(cache: Path, autoencoder: AutoencoderKL) -> tuple[AutoencoderKL, Discriminator]:
    """The decoder's and the discriminator's averages, the former with the encoder that it was trained with."""
    autoencoder, discriminator = copy.deepcopy(autoencoder).cpu(), Discriminator()
    averages(cache / "decoder", {"decoder": decoder_of(autoencoder), "discriminator": discriminator})
    return autoencoder, discriminator


def _pictures(arguments: argparse.Namespace) -> tuple[list[tuple[NDArray[np.uint8], float]], NDArray[np.uint8]]:
    """Half people and half photographs, with their weights, and `HELD_OUT` of each that are not learned from."""
    squares = np.load(arguments.cache / "photographs.npy", mmap_mode="r")
    people = data.load_figures(arguments.cache, SMALL).pictures
    held_out = np.concatenate([people[:HELD_OUT], squares[:HELD_OUT]])
    return [(people[HELD_OUT:], 1.0), (squares[HELD_OUT:], 1.0)], held_out


def _diffusion(arguments: argparse.Namespace) -> None:
    autoencoder, tokenizer = _trained_autoencoder(arguments), _tokenizer(arguments)
    materials = []
    for size in data.sizes(arguments.cache):
        figures = data.load_figures(arguments.cache, size)
        latents = _latents(arguments.cache, size, autoencoder, figures.pictures)
        materials.append(diffusion.material_of(figures, latents, tokenizer, _device()))
    start = weights.load_networks(arguments.base) if arguments.base else None
    stage = diffusion.DiffusionStage(materials, autoencoder, tokenizer, arguments.batch, _device(), start)
    learn(_run(arguments), stage, arguments.workers, (lambda: _save(arguments)) if arguments.output else None)


def _latents(cache: Path, size: int, autoencoder: AutoencoderKL, pictures: NDArray[np.uint8]) -> NDArray[np.float16]:
    """The pictures' latents, kept in the cache for as long as the encoder and their number stay the same."""
    encoder = [*autoencoder.encoder.state_dict().values(), *autoencoder.quant_conv.state_dict().values()]
    digest = hashlib.sha256(b"".join(weight.cpu().numpy().tobytes() for weight in encoder)).hexdigest()
    path = cache / f"latents-{size}-{len(pictures)}-{digest[:12]}.npy"
    if not path.exists():
        np.save(path, diffusion.encode(autoencoder, pictures))
    return np.load(path)


def _save(arguments: argparse.Namespace) -> None:
    cache, tokenizer = arguments.cache, _tokenizer(arguments)
    networks = diffusion.Networks(
        diffusion.build_unet(), diffusion.build_controlnet(), words.build_text_encoder(tokenizer)
    )
    averages(cache / "diffusion", {**vars(networks)})
    autoencoder, discriminator = _trained_autoencoder(arguments).cpu(), None
    if arguments.base:
        discriminator = Discriminator.load(arguments.base)
    elif (cache / "decoder" / "checkpoint.pt").exists():
        autoencoder, discriminator = _averaged_decoder(cache, autoencoder)
    weights.save(arguments.output or weights.FOLDER, autoencoder, networks, tokenizer, discriminator)


def _trained_autoencoder(arguments: argparse.Namespace) -> AutoencoderKL:
    """The base's; or the averaged one of its stage, with its scaling_factor measured on figures and photographs."""
    if arguments.base:
        autoencoder = AutoencoderKL.from_pretrained(arguments.base / "vae").float()
        return autoencoder.to(_device()).eval().requires_grad_(False)
    cache, autoencoder = arguments.cache, first_stage.build()
    averages(cache / "autoencoder", {"autoencoder": autoencoder})
    autoencoder = autoencoder.to(_device()).eval().requires_grad_(False)
    shown = [data.load_figures(cache, SMALL).pictures[:256], np.load(cache / "photographs.npy", mmap_mode="r")[:64]]
    autoencoder.register_to_config(
        scaling_factor=round(first_stage.latent_scale(autoencoder, np.concatenate(shown)), 4)
    )
    return autoencoder


def _tokenizer(arguments: argparse.Namespace) -> CLIPTokenizer:
    folder = (arguments.base or arguments.cache) / "tokenizer"
    if not folder.exists():
        words.build_tokenizer(data.load_figures(arguments.cache, SMALL).captions).save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def _run(arguments: argparse.Namespace) -> Run:
    return Run(arguments.cache / arguments.stage, arguments.minutes, _device(), arguments.resume, arguments.every)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


if __name__ == "__main__":
    main()
