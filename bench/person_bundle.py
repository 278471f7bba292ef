"""A shared bundle that takes the people of a base of any size, without that base: random packs of the right shapes.

What people cost in memory and seconds depends on their packs alone, so its graphs compute next to nothing: the denoiser
has a real one's border and inputs, and reads a row of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn

from posecrafter.export.graphs import Border, Graph, Step, step_graph
from posecrafter.export.save import save_graph
from posecrafter.export.shared import STEP, personal_names
from posecrafter.export.trace import trace, translate
from posecrafter.finetune.network import VideoControlNet, VideoDenoiser, VideoUNet
from posecrafter.finetune.trainable import trained_names
from posecrafter.manifest import Defaults, Latents, Manifest, Range, Text
from posecrafter.pose import PoseTrack, write_poses
from posecrafter.runtime.low_rank import BASE, DOWN, UP, LowRank
from posecrafter.runtime.person import FOLDER, WEIGHTS, Pack
from posecrafter.schedule import Schedule

SIDE, FACTOR, FRAMES = 64, 8, 4
"""Pixels, pixels a latent cell, training frames."""

Config = Mapping[str, Any]
Shapes = dict[str, list[int]]


def write_bundle(folder: Path, config: Config, names: Mapping[str, LowRank | None], seed: int = 0) -> Path:
    """A shared fp16 bundle for people of a denoiser of `config`, with a random pack for each of `names`."""
    with torch.device("meta"):
        denoiser = VideoDenoiser(VideoUNet.from_config(config), VideoControlNet.from_config(config))
        trained = trained_names(denoiser, "method")
        denoiser.unet.fold_temporal()
    graphs, ranges = _graphs(config), {"frames": Range(1, 33), "prompts": Range(1, 4), "h": Range(4, 32)}
    ranges |= {"w": ranges["h"], "height": Range(32, 256, 8), "width": Range(32, 256, 8)}
    shapes = personal_names(Graph("denoiser", nn.Module(), {}, {}), Step(denoiser), trained)
    graphs["denoiser"] = step_graph(_Denoiser(shapes), denoiser.unet.size, tokens=77, timesteps=1000)
    for name, graph in graphs.items():
        personal = shapes if name == "denoiser" else ()
        save_graph(translate(graph, trace(graph, ranges), personal), folder / "graphs", name)
    pool = np.random.default_rng(seed).standard_normal(_count(shapes) + 64 * (len(names) + 2), np.float32)
    pool = (pool * 0.02).astype(np.float16)
    matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2 and ".attn_temp.to_out." not in name}
    _save(folder / BASE, _take(pool, {f"denoiser/{name}": shape for name, shape in matrices.items()}))
    _write_own(folder / "person", config, pool[64:], shapes)
    manifest = _manifest(config, shapes)
    for number, (name, low_rank) in enumerate(names.items(), start=2):
        person = folder / FOLDER / name
        _write_person(person, folder / "person", pool[64 * number :], shapes, matrices, low_rank)
        _pack(manifest, person, low_rank).write(person)
    files = {name: entry for name, entry in Manifest.entries(folder).items() if not name.startswith(FOLDER)}
    object.__setattr__(manifest, "files", files)
    manifest.write(folder)
    return folder


class _Denoiser(nn.Module):
    """A solver step's border; eps is x moved by what it reads of every parameter."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        for name, shape in shapes.items():
            module, (*path, last) = self, name.split(".")
            for part in path:
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                module = module.get_submodule(part)
            module.register_parameter(last, nn.Parameter(torch.zeros(shape, dtype=torch.float16), False))

    def forward(
        self, x: Tensor, timestep: Tensor, a: Tensor, b: Tensor, text: Tensor, weight: Tensor, pose_features: Tensor,
        control_scale: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        read = torch.stack([p[:1].float().mean() for p in self.parameters()]).sum()
        said = (weight * text.mean((1, 2))).sum() + timestep.float().mean() / 1000
        # Times a thousand, so that another person is another picture and not a rounding of it.
        eps = x * control_scale + pose_features[:, : x.shape[1]] + 1000 * read + said
        return a * x + b * eps, eps


class _PoseEncoder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, FACTOR, FACTOR)

    def forward(self, control_images: Tensor) -> Tensor:
        return self.conv(control_images)


class _Decoder(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 3 * FACTOR**2, 1)

    def forward(self, latents: Tensor) -> Tensor:
        pixels = nn.functional.pixel_shuffle(self.conv(latents), FACTOR)
        return ((torch.sin(pixels) + 1) * 127.5).permute(0, 2, 3, 1)


def _graphs(config: Config) -> dict[str, Graph]:
    width = config["block_out_channels"][0]
    images, frames = Border(("frames", 3, "height", "width")), ("frames", "height", "width", 3)
    latents = Border(("frames", 4, "h", "w"))
    return {
        "pose_encoder": Graph(
            "pose_encoder",
            _PoseEncoder(width),
            {"control_images": images},
            {"pose_features": ("frames", width, "h", "w")},
        ),
        "vae_decoder": Graph("vae_decoder", _Decoder(4), {"latents": latents}, {"frames": frames}),
    }


def _manifest(config: Config, shapes: Shapes) -> Manifest:
    sides, cells = Range(SIDE, SIDE, FACTOR), Latents(channels=4, factor=FACTOR, scaling_factor=1.0)
    return Manifest(
        precision="fp16",
        width=sides,
        height=sides,
        frames=Range(1, 33),
        prompts=Range(1, 4),
        latents=cells,
        text=Text(tokens=77, width=config["cross_attention_dim"], prompt="a person"),
        schedule=Schedule(),
        defaults=Defaults(width=SIDE, height=SIDE, steps=1, guidance=2.0, control_scale=1.0),
        pose_style="v1.1",
        fps=25.0,
        training_frames=FRAMES,
        network_width=config["block_out_channels"][0],
        kind="shared",
        provenance={"base_sha256": "0" * 64},
        shared={"denoiser": shapes},
    )


def _pack(manifest: Manifest, folder: Path, low_rank: LowRank | None) -> Pack:
    base, files = manifest.provenance["base_sha256"], Manifest.entries(folder)
    return Pack(base, FRAMES, manifest.fps, "a person", SIDE, SIDE, files, low_rank=low_rank)


def _write_own(folder: Path, config: Config, pool: np.ndarray, shapes: Shapes) -> None:
    """What every person has beside weights; and the bundle's own person's weights."""
    folder.mkdir()
    random = np.random.default_rng(1)
    xy = random.uniform(8, SIDE - 8, (FRAMES, 130, 2)).astype(np.float32)
    write_poses(folder / "poses.json", PoseTrack(xy, np.ones((FRAMES, 130), np.float32), SIDE, SIDE))
    cells = (FRAMES, 4, SIDE // FACTOR, SIDE // FACTOR)
    _save(folder / "latents.safetensors", {"latents": random.standard_normal(cells).astype(np.float32)})
    text = random.standard_normal((77, config["cross_attention_dim"])).astype(np.float32)
    _save(folder / "text.safetensors", {"empty": 0 * text, "prompt": text})
    _save(folder / WEIGHTS, _take(pool, {f"denoiser/{name}": shape for name, shape in shapes.items()}))


def _write_person(
    folder: Path, own: Path, pool: np.ndarray, shapes: Shapes, matrices: Shapes, low_rank: LowRank | None
) -> None:
    folder.mkdir(parents=True)
    for name in ("poses.json", "latents.safetensors", "text.safetensors"):
        (folder / name).write_bytes((own / name).read_bytes())
    wanted = {f"denoiser/{name}": shape for name, shape in shapes.items() if low_rank is None or name not in matrices}
    for name, (outputs, inputs) in matrices.items() if low_rank is not None else ():
        layer = f"denoiser/{name}".removesuffix(".weight")
        wanted |= {f"{layer}{DOWN}": [low_rank.rank, inputs], f"{layer}{UP}": [outputs, low_rank.rank]}
    assert all(name.startswith(STEP) for name in wanted)
    _save(folder / WEIGHTS, _take(pool, wanted))


def _take(pool: np.ndarray, shapes: Shapes) -> dict[str, np.ndarray]:
    """Consecutive parts of the pool: whoever starts elsewhere in it gets other numbers everywhere."""
    taken, start = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        taken[name] = pool[start : start + size].reshape(shape)
        start += size
    return taken


def _count(shapes: Shapes) -> int:
    return sum(int(np.prod(shape)) for shape in shapes.values())


def _save(path: Path, tensors: dict[str, np.ndarray]) -> None:
    save_file(tensors, path)
