"""Fixtures that every part's tests share: a tiny base model in diffusers' format, random but whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

# Triton decides between compiling and interpreting when it is first imported; here its kernels run in numpy.
os.environ["TRITON_INTERPRET"] = "1"
# transformers looks for a package `kernels`, which is not the folder of that name in the checkout that tests run in.
os.environ["PYTHONSAFEPATH"] = "1"

TINY_SIZE = 64
"""Width and height in pixels that the tiny base is made for; its autoencoder's factor is 8."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked slow run when they are asked for: pytest -m slow."""
    if "slow" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("slow") is not None:
                item.add_marker(pytest.mark.skip(reason="longer than a minute; run it with: pytest -m slow"))


@pytest.fixture(scope="session")
def tensorrt_rtx() -> Any:
    """The real library; where there is none, the test is skipped."""
    return pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is made for x86-64, and not for macOS")


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base folder with every component: 6 latent channels, 3 levels of widths 32, 64, 64, 16 text tokens."""
    return write_tiny_base(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="session")
def make_tiny_base() -> Callable[..., Path]:
    """`write_tiny_base`, for a test that needs a base of its own."""
    return write_tiny_base


@pytest.fixture(scope="session")
def make_tiny_run() -> Callable[..., Path]:
    """`write_tiny_run`, for a test that needs people of its own."""
    return write_tiny_run


@pytest.fixture(scope="session")
def tiny_run(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the tiny base: six frames, and a person of random changes in place of training."""
    return write_tiny_run(tmp_path_factory.mktemp("tiny") / "run", tiny_base)


@pytest.fixture(scope="session")
def tiny_bundle(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run, exported."""
    from posecrafter.export.export import export_bundle

    return export_bundle(tiny_run, tmp_path_factory.mktemp("tiny") / "bundle")


@pytest.fixture
def no_tracing(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export takes the graphs of the tiny bundle instead of tracing them anew."""
    from posecrafter.export import export

    def write(folder: Path, *_: Any) -> None:
        shutil.copytree(tiny_bundle / "graphs", folder, dirs_exist_ok=True)

    monkeypatch.setattr(export, "_write_graphs", write)


@contextmanager
def tracing_only_the_denoiser(bundle: Path) -> Iterator[None]:
    """Exports take the other graphs from a bundle of the same base, and leave it to their tests to compare."""
    from posecrafter.export import export

    write = export._write_graphs

    def write_denoiser(folder: Path, reference: dict[str, Any], *rest: Any) -> None:
        shutil.copytree(bundle / "graphs", folder, dirs_exist_ok=True)
        write(folder, {"denoiser": reference["denoiser"]}, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "_write_graphs", write_denoiser)
        patch.setattr(export, "check_parity", lambda *_: {})
        yield


@pytest.fixture(scope="session")
def only_the_denoiser() -> Callable[[Path], AbstractContextManager[None]]:
    """`tracing_only_the_denoiser`, for a test that exports."""
    return tracing_only_the_denoiser


@pytest.fixture(scope="session")
def odd_bundle(tiny_base: Path, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run's person at 72x72, exported: 9 latent cells, which no level halves without rest."""
    from posecrafter.export.export import export_bundle

    folder = tmp_path_factory.mktemp("odd")
    with tracing_only_the_denoiser(tiny_bundle):
        return export_bundle(write_tiny_run(folder / "run", tiny_base, size=72), folder / "bundle")


@pytest.fixture(scope="session")
def smallest_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of one level only: the smallest that has every layer but those between levels."""
    levels: dict[str, Any] = {"block_out_channels": (32,), "down_block_types": ("CrossAttnDownBlock2D",)}
    return write_tiny_base(tmp_path_factory.mktemp("smallest") / "base", **levels)


@pytest.fixture(scope="session")
def people(smallest_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of four people on one base; the last tuned low-rank updates, the others full matrices."""
    folder = tmp_path_factory.mktemp("people")
    runs = {name: write_tiny_run(folder / name, smallest_base, seed=seed) for seed, name in enumerate("abc")}
    return {**runs, "d": write_tiny_run(folder / "d", smallest_base, seed=3, rank=4)}


@pytest.fixture(scope="session")
def shared_bundle(people: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shared bundle whose own person is a, with packs of b, c and d. Not to be changed."""
    from posecrafter.export.export import ExportOptions, export_bundle
    from posecrafter.export.person import export_person

    out = tmp_path_factory.mktemp("shared") / "bundle"
    bundle = export_bundle(people["a"], out, options=ExportOptions(shared=True))
    for name in "bcd":
        assert export_person(people[name], bundle, name) == bundle / "persons" / name
    return bundle


@pytest.fixture(scope="session")
def toy_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose fp16 graphs are a few layers each, attention among them, behind the borders of real ones.

    An engine is built for it in seconds. 4 latent channels, 32x40 pixels of 8 a cell, 5 tokens of width 6.
    """
    return write_toy_bundle(tmp_path_factory.mktemp("toy") / "bundle")


def write_toy_bundle(folder: Path) -> Path:
    """Write graphs, person and manifest."""
    import numpy as np
    import onnx
    from safetensors.numpy import save_file

    from posecrafter.manifest import Defaults, Latents, Manifest, Range, Text
    from posecrafter.pose import PoseTrack, write_poses
    from posecrafter.schedule import Schedule

    random = np.random.default_rng(0)
    (folder / "graphs").mkdir(parents=True)
    (folder / "person").mkdir()
    for name, (text, weights) in _TOY_GRAPHS.items():
        model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 23]> {name} {text}')
        for key, shape in weights.items():
            half = (random.standard_normal(shape) / np.prod(shape[1:]) ** 0.5).astype(np.float16)
            model.graph.initializer.append(onnx.numpy_helper.from_array(half, key))
        onnx.checker.check_model(model, full_check=True)
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        onnx.save(model, folder / "graphs" / f"{name}.onnx")
    (folder / "graphs" / "tokenizer.json").write_text("{}")
    xy = random.uniform(4, 28, (3, 130, 2)).astype(np.float32)
    write_poses(folder / "person" / "poses.json", PoseTrack(xy, np.ones((3, 130), np.float32), 40, 32))
    latents = random.standard_normal((3, 4, 4, 5)).astype(np.float32)
    save_file({"latents": latents}, folder / "person" / "latents.safetensors")
    text = {"prompt": np.full((5, 6), 0.5, np.float32), "empty": np.zeros((5, 6), np.float32)}
    save_file(text, folder / "person" / "text.safetensors")
    Manifest(
        precision="fp16",
        width=Range(16, 64, 8),
        height=Range(16, 64, 8),
        frames=Range(1, 33),
        prompts=Range(1, 4),
        latents=Latents(channels=4, factor=8, scaling_factor=1.0),
        text=Text(tokens=5, width=6, prompt="a person"),
        schedule=Schedule(),
        defaults=Defaults(width=40, height=32, steps=2, guidance=2.0, control_scale=1.0),
        pose_style="v1.1",
        fps=25.0,
        training_frames=3,
        network_width=32,
        files=Manifest.entries(folder),
    ).write(folder)
    return folder


_TOY_GRAPHS: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
    "pose_encoder": (
        """(float[frames, 3, height, width] control_images) => (float[frames, 32, h, w] pose_features) {
            half = Cast<to = 10>(control_images)
            cells = Conv<strides = [8, 8], kernel_shape = [8, 8]>(half, kernel)
            pose_features = Cast<to = 1>(cells)
        }""",
        {"kernel": (32, 3, 8, 8)},
    ),
    "denoiser": (
        """(float[frames, 4, h, w] x, int64[1] timestep, float a, float b, float[prompts, 5, 6] text,
            float[prompts] weight, float[frames, 32, h, w] pose_features, float control_scale)
            => (float[frames, 4, h, w] x_next, float[frames, 4, h, w] eps)
        <int64[4] apart = {0, 2, 16, -1}, int64[2] words = {1, 2}, int64[1] first = {0}, float thousandth = {0.001}> {
            half = Cast<to = 10>(x)
            poses = Cast<to = 10>(pose_features)
            wide = Conv(half, into)
            posed = Add(wide, poses)
            q = Conv(posed, to_q)
            q_apart = Reshape(q, apart)
            q_tokens = Transpose<perm = [0, 1, 3, 2]>(q_apart)
            q_exact = Cast<to = 1>(q_tokens)
            k = Conv(posed, to_k)
            k_apart = Reshape(k, apart)
            k_tokens = Transpose<perm = [0, 1, 3, 2]>(k_apart)
            k_exact = Cast<to = 1>(k_tokens)
            v = Conv(posed, to_v)
            v_apart = Reshape(v, apart)
            v_tokens = Transpose<perm = [0, 1, 3, 2]>(v_apart)
            v_exact = Cast<to = 1>(v_tokens)
            seen = Attention(q_exact, k_exact, v_exact)
            back = Cast<to = 10>(seen)
            turned = Transpose<perm = [0, 1, 3, 2]>(back)
            shape = Shape(posed)
            joined = Reshape(turned, shape)
            small = Conv(joined, out)
            full = Cast<to = 1>(small)
            scaled = Mul(full, control_scale)
            meaning = ReduceMean<keepdims = 0>(text, words)
            weighed = Mul(meaning, weight)
            said = ReduceSum<keepdims = 0>(weighed, first)
            when = Cast<to = 1>(timestep)
            late = Mul(when, thousandth)
            shifted = Add(scaled, said)
            eps = Add(shifted, late)
            kept = Mul(a, x)
            moved = Mul(b, eps)
            x_next = Add(kept, moved)
        }""",
        {"into": (32, 4, 1, 1), **{f"to_{x}": (32, 32, 1, 1) for x in "qkv"}, "out": (4, 32, 1, 1)},
    ),
    "vae_decoder": (
        """(float[frames, 4, h, w] latents) => (float[frames, height, width, 3] frames)
        <float low = {0.0}, float high = {255.0}, float grey = {128.0}> {
            half = Cast<to = 10>(latents)
            deep = Conv(half, kernel)
            pixels = DepthToSpace<blocksize = 8>(deep)
            full = Cast<to = 1>(pixels)
            bright = Mul(full, grey)
            clear = Clip(bright, low, high)
            frames = Transpose<perm = [0, 2, 3, 1]>(clear)
        }""",
        {"kernel": (192, 4, 1, 1)},
    ),
    "text_encoder": (
        """(int64[prompts, 5] input_ids) => (float[prompts, 5, 6] text) {
            rows = Gather(table, input_ids)
            text = Cast<to = 1>(rows)
        }""",
        {"table": (100, 6)},
    ),
}


def write_tiny_run(folder: Path, base_folder: Path, seed: int = 0, rank: int = 0, size: int = TINY_SIZE) -> Path:
    """Write what fine-tuning writes: poses, latents, a person and the record. rank: of low-rank updates; 0 for none.

    size: of frames, in pixels.
    """
    import numpy as np
    import torch

    from posecrafter.finetune.base import load_base
    from posecrafter.finetune.person import Person
    from posecrafter.finetune.run_folder import RunFolder
    from posecrafter.finetune.trainable import trained_names
    from posecrafter.pose import PoseTrack

    base, generator, random = load_base(base_folder), torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    weights, changed = dict(base.denoiser.named_parameters()), {}
    for name in trained_names(base.denoiser, "method"):
        if not rank or ".conv_temp." in name:
            changed[name] = weights[name] + 0.1 * torch.randn(weights[name].shape, generator=generator)
        elif name.endswith(".weight"):
            (outputs, inputs), layer = weights[name].shape, name.removesuffix(".weight")
            changed[f"{layer}.lora_down.weight"] = 0.3 * torch.randn(rank, inputs, generator=generator)
            changed[f"{layer}.lora_up.weight"] = 0.3 * torch.randn(outputs, rank, generator=generator)
    xy = random.uniform(0.2, 0.8, (1, 130, 2)) * size + np.cumsum(random.normal(0, 0.6, (6, 1, 2)), axis=0)
    track = PoseTrack(xy.astype(np.float32), np.ones((6, 130), np.float32), size, size)
    patches = random.integers(0, 256, (6, size // 8, size // 8, 3), dtype=np.uint8)
    frames = torch.from_numpy(patches.repeat(8, axis=1).repeat(8, axis=2))
    record = {
        "base": {"source": str(base_folder), "controlnet": None, "sha256": base.sha256},
        "width": size,
        "height": size,
        "frames": 6,
        "fps": 25.0,
        "prompt": "a person",
        "pose_style": base.pose_style,
        "steps": 0,
    }
    folder.mkdir(parents=True)
    person = Person(changed, "lora" if rank else "full", base.sha256, rank, 2.0 * rank)
    RunFolder(folder).finish(person, track, base.encode_frames(frames), record)
    return folder


def write_tiny_base(folder: Path, seed: int = 0, **unet_options: Any) -> Path:
    """Write unet, controlnet, vae, text_encoder, tokenizer, scheduler and posecrafter.json to `folder`."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _write_denoiser(folder, unet_options)
        _write_autoencoder(folder)
        _write_text(folder)
    scheduler = folder / "scheduler"
    scheduler.mkdir()
    _write_json(scheduler / "scheduler_config.json", _SCHEDULER)
    _write_json(folder / "posecrafter.json", _DEFAULTS)
    return folder


_SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
    "prediction_type": "epsilon",
}
_DEFAULTS = {
    "defaults": {
        "width": TINY_SIZE,
        "height": TINY_SIZE,
        "steps": 4,
        "guidance": 2.0,
        "control_scale": 1.0,
        "train_steps": 20,
    },
    "pose_style": "v1.1",
}


def _write_denoiser(folder: Path, options: dict[str, Any]) -> None:
    import torch
    from diffusers import ControlNetModel, UNet2DConditionModel

    shared: dict[str, Any] = {
        "in_channels": 6,
        "block_out_channels": (32, 64, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "cross_attention_dim": 32,
        "norm_num_groups": 8,
        **options,
    }
    up = tuple(kind.replace("Down", "Up") for kind in reversed(shared["down_block_types"]))
    unet = UNet2DConditionModel(
        sample_size=TINY_SIZE // 8, out_channels=shared["in_channels"], up_block_types=up, **shared
    )
    unet.save_pretrained(folder / "unet")
    controlnet = ControlNetModel(conditioning_embedding_out_channels=(8, 8, 16, 16), **shared)
    # A ControlNet's last layers start at zero, so poses would not matter; here they shall.
    zeros = [controlnet.controlnet_cond_embedding.conv_out, controlnet.controlnet_mid_block]
    for layer in [*zeros, *controlnet.controlnet_down_blocks]:
        torch.nn.init.kaiming_normal_(layer.weight)
        torch.nn.init.normal_(layer.bias, std=0.1)
    controlnet.save_pretrained(folder / "controlnet")


def _write_autoencoder(folder: Path) -> None:
    import torch
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=6,
        sample_size=TINY_SIZE,
    ).eval()
    with torch.no_grad():
        latents = vae.encode(torch.rand(2, 3, TINY_SIZE, TINY_SIZE) * 2 - 1).latent_dist.mode()
    vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 5))
    vae.save_pretrained(folder / "vae")


def _write_text(folder: Path) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=16)
    tokenizer.save_pretrained(folder / "tokenizer")
    _write_json(folder / "tokenizer" / "vocab.json", vocabulary)
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=vocabulary["<|startoftext|>"],
        eos_token_id=vocabulary["<|endoftext|>"],
        pad_token_id=vocabulary["<|endoftext|>"],
    )
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
