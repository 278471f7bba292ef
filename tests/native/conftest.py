"""The C++ library, built once for a test run, and the programs that come with it."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Native:
    """A build folder, the engines' libraries in their installed wheels, and what runs the build's programs, if not this
    machine itself."""

    build: Path
    onnxruntime: Path
    openvino: Path
    emulator: tuple[str, ...] = ()

    def dump(self, bundle: Path, **words: Any) -> tuple[str, str]:
        """Run native_dump: the code of its refusal ("" when it went well) and its message."""
        command = [
            *self.emulator,
            self.build / "tests/native/native_dump",
            bundle,
            *(f"{k}={v}" for k, v in words.items()),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode in (0, 2), f"exit {done.returncode}: {done.stderr}"
        return done.stdout.strip(), done.stderr.strip()

    def render(self, bundle: Path, poses: Path, out: Path, engine: str = "onnxruntime", **words: Any) -> dict[str, Any]:
        """Plan, maps [M, H, W, 3], latents [M, L * h * w] and frames [M, H, W, 3] of one request."""
        self._dump_on(engine, bundle, poses, out, words)
        return self._rendered(out)

    def render_people(
        self, people: Sequence[str | Path], bundle: Path, poses: Path, out: Path, engine: str, **words: Any
    ) -> list[dict[str, Any]]:
        """The same of one session for one person after another; "" is the bundle's own."""
        self._dump_on(engine, bundle, poses, out, {**words, "persons": ",".join(map(str, people))})
        return [self._rendered(out / str(index)) for index in range(len(people))]

    def render_together(
        self, sessions: int, bundle: Path, poses: Path, out: Path, engine: str, **words: Any
    ) -> list[dict[str, Any]]:
        """The same by so many sessions at once, each in a thread of its own."""
        self._dump_on(engine, bundle, poses, out, {**words, "together": sessions})
        return [self._rendered(out / str(index)) for index in range(sessions)]

    def _dump_on(self, engine: str, bundle: Path, poses: Path, out: Path, words: dict[str, Any]) -> None:
        out.mkdir(parents=True, exist_ok=True)
        if engine == "fake":
            engine = str(self.build / "tests/native/fake_engine.so")
        library = {"onnxruntime": self.onnxruntime, "openvino": self.openvino}.get(engine, "")
        code, message = self.dump(bundle, poses=poses, out=out, engine=engine, library=library, **words)
        assert not code, f"{code}: {message}"

    def _rendered(self, out: Path) -> dict[str, Any]:
        plan = json.loads((out / "plan.json").read_text())
        width, height = map(int, plan["size"].split("x"))
        pictures = (plan["frames"], height, width, 3)
        return {
            "plan": plan,
            "maps": np.fromfile(out / "maps.u8", np.uint8).reshape(pictures),
            "latents": np.fromfile(out / "latents.f32", np.float32).reshape(plan["frames"], -1),
            "frames": np.fromfile(out / "frames.u8", np.uint8).reshape(pictures),
        }


class KeyPoints(ctypes.Structure):
    _fields_ = (
        ("frames", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("points", ctypes.POINTER(ctypes.c_float)),
    )


class Options(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_uint32),
        ("threads", ctypes.c_int32),
        ("engine", ctypes.c_char_p),
        ("engine_library", ctypes.c_char_p),
        ("device", ctypes.c_char_p),
        ("precision", ctypes.c_char_p),
    )


class Library:
    """libposecrafter.so in this process, through its C interface, with the fake engine."""

    def __init__(self, build: Path) -> None:
        self._c = ctypes.CDLL(str(build / "lib/libposecrafter.so"))
        self._c.pc_last_error_code.restype = ctypes.c_char_p
        self._c.pc_poses_free.restype = None
        self._fake_engine = str(build / "tests/native/fake_engine.so").encode()

    def open(self, bundle: Path, person: str | Path | None = None) -> str:
        """Open a bundle, load a person where one is named, close: the code of the refusal, or ""."""
        session, options = ctypes.c_void_p(), Options(engine=self._fake_engine)
        options.struct_size = ctypes.sizeof(options)
        failed = self._c.pc_open(str(bundle).encode(), ctypes.byref(options), ctypes.byref(session))
        if not failed and person is not None:
            failed = self._c.pc_load_person(session, str(person).encode())
        code: str = self._c.pc_last_error_code().decode()
        assert bool(failed) == bool(code)
        self._c.pc_close(ctypes.byref(session))
        return code

    def parse_poses(self, text: bytes, canvas: tuple[int, int] = (0, 0)) -> np.ndarray | str:
        """float32 [F, 130, 3] of a JSON text, or the code of the refusal."""
        poses = ctypes.c_void_p()
        failed = self._c.pc_poses_parse(text, ctypes.c_size_t(len(text)), *canvas, ctypes.byref(poses))
        return str(self._c.pc_last_error_code().decode()) if failed else self._take(poses)

    def read_poses(self, path: Path) -> np.ndarray | str:
        poses = ctypes.c_void_p()
        failed = self._c.pc_poses_read(str(path).encode(), 0, 0, ctypes.byref(poses))
        return str(self._c.pc_last_error_code().decode()) if failed else self._take(poses)

    def _take(self, poses: ctypes.c_void_p) -> np.ndarray:
        view = KeyPoints()
        assert self._c.pc_poses_view(poses, ctypes.byref(view)) == 0
        table = np.ctypeslib.as_array(view.points, (view.frames, 130, 3)).copy()
        self._c.pc_poses_free(ctypes.byref(poses))
        return table


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--native-build", type=Path, help="test this build of the C++ library, as it is: one with sanitizers"
    )
    parser.addoption(
        "--native-preload", type=Path, help="what that build needs loaded before it: the sanitizer's runtime"
    )

    parser.addoption("--native-emulator", help="what runs that build's programs, which are another processor's")


def given_build(config: pytest.Config) -> Path | None:
    folder: Path | None = config.getoption("--native-build", default=None)
    return folder.resolve() if folder else None


class Beside(BaseManager):
    """A Library in a process of its own."""

    Library: Callable[[Path], Library]


Beside.register("Library", Library)


@pytest.fixture(scope="session")
def library(native: Native, pytestconfig: pytest.Config) -> Iterator[Library]:
    preload = pytestconfig.getoption("--native-preload", default=None)
    if preload is None:
        try:
            own = Library(native.build)
        except OSError:
            if given_build(pytestconfig) is None:
                raise
            pytest.skip("a library with sanitizers is loaded behind their runtime: name it in --native-preload")
        yield own
        return
    manager = Beside(ctx=get_context("spawn"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, str(ROOT)])  # where it finds this module
        patch.setenv("LD_PRELOAD", str(preload))
        manager.start()
    yield manager.Library(native.build)
    manager.shutdown()


@pytest.fixture(scope="session")
def native(pytestconfig: pytest.Config) -> Native:
    """Built in build/native, where a second run finds it, if no other build is named."""
    return Native(
        given_build(pytestconfig) or built(),
        wheel_library("onnxruntime", "capi/libonnxruntime.so.*"),
        wheel_library("openvino", "libs/libopenvino_c.so.*"),
        tuple((pytestconfig.getoption("--native-emulator", default=None) or "").split()),
    )


def built() -> Path:
    """The headers are unpacked beside it."""
    for program in ("cmake", "g++"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: apt-get install cmake g++ libssl-dev")
    build = ROOT / "build/native"
    for command in (
        ["cmake", "-S", ROOT, "-B", build, f"-DPython3_EXECUTABLE={sys.executable}"],
        ["cmake", "--build", build, "--parallel", "2"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return build


def wheel_library(package: str, pattern: str) -> Path:
    """The library in an installed wheel, whatever its release. The package is not imported."""
    spec = find_spec(package)
    assert spec is not None, f"{package} is not installed"
    assert spec.origin is not None
    return next(Path(spec.origin).parent.glob(pattern))


@pytest.fixture(scope="session")
def write_bundle() -> Callable[..., Path]:
    """`write_made_up_bundle`, for a test that alters what it wrote."""
    return write_made_up_bundle


def write_made_up_bundle(folder: Path, width: int = 64, height: int = 64, style: str = "v1.1") -> Path:
    """A bundle that opens and that the fake engine runs; its graphs hold nothing."""
    from posecrafter.manifest import Defaults, Latents, Manifest, Range, Text
    from posecrafter.pose import PoseTrack, write_poses
    from posecrafter.schedule import Schedule

    (folder / "graphs").mkdir(parents=True)
    (folder / "person").mkdir()
    for name in ("pose_encoder", "denoiser", "vae_decoder"):
        (folder / f"graphs/{name}.onnx").write_bytes(b"graph " * 100)
    random = np.random.default_rng(0)
    xy = random.uniform(10, 50, (4, 130, 2)).astype(np.float32)
    write_poses(folder / "person/poses.json", PoseTrack(xy, np.ones((4, 130), np.float32), width, height))
    save_file(
        {"latents": random.standard_normal((4, 4, height // 8, width // 8)).astype(np.float16)},
        folder / "person/latents.safetensors",
    )
    text = {name: np.zeros((5, 6), np.float32) for name in ("prompt", "empty")}
    save_file(text, folder / "person/text.safetensors")
    Manifest(
        precision="fp32",
        width=Range(width, width, 8),
        height=Range(height, height, 8),
        frames=Range(1, 33),
        prompts=Range(1, 4),
        latents=Latents(channels=4, factor=8, scaling_factor=1.0),
        text=Text(tokens=5, width=6, prompt="a person"),
        schedule=Schedule(),
        defaults=Defaults(width=width, height=height, steps=4, guidance=2.0, control_scale=1.0),
        pose_style=style,
        fps=25.0,
        training_frames=4,
        network_width=32,
        files=Manifest.entries(folder),
    ).write(folder)
    return folder


@pytest.fixture(scope="session")
def pocket_people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pocket base exported once for two people, its own and "eve": painted clips, weights a little off the base's.

    Without the export's comparison with PyTorch, which is the export's own to test.
    """
    from posecrafter.export.export import ExportOptions, export_bundle
    from posecrafter.export.person import export_person
    from posecrafter.finetune.base import load_base
    from posecrafter.pocket.weights import FOLDER

    if not (FOLDER / "unet").exists():
        pytest.skip("no weights in pocket/weights")
    folder, base = tmp_path_factory.mktemp("pocket"), load_base(FOLDER)
    own, eve = (write_untuned_run(folder / name, base, seed) for seed, name in ((3, "own"), (5, "eve")))
    with pytest.MonkeyPatch.context() as patch:
        for module in ("export", "person"):
            patch.setattr(f"posecrafter.export.{module}.check_parity", lambda *_: {})
        bundle = export_bundle(own, folder / "bundle", options=ExportOptions(shared=True))
        export_person(eve, bundle, "eve")
    return bundle


@pytest.fixture(scope="session")
def half_people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shared fp16 bundle that computes with the first row of every weight: "full" is full matrices, "thin" low-rank.

    Not to be changed.
    """
    from posecrafter.bench.person_bundle import write_bundle
    from posecrafter.bench.speed.large import SD15
    from posecrafter.runtime.low_rank import LowRank

    small: dict[str, Any] = {
        "block_out_channels": [64],
        "down_block_types": ["CrossAttnDownBlock2D"],
        "cross_attention_dim": 8,
    }
    # Factors of 0.02 each: this scale makes an update about as large as what it is added to.
    people = {"full": None, "thin": LowRank(rank=3, scale=40.0)}
    return write_bundle(tmp_path_factory.mktemp("half") / "bundle", {**SD15, **small}, people)


@pytest.fixture(scope="session")
def half_network(people: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest network shared in fp16, whose own person is a, with b as full matrices and d as low-rank updates.

    Without the export's comparison with PyTorch, which is the export's own to test.
    """
    from posecrafter.export.export import ExportOptions, export_bundle
    from posecrafter.export.person import export_person

    with pytest.MonkeyPatch.context() as patch:
        for module in ("export", "person"):
            patch.setattr(f"posecrafter.export.{module}.check_parity", lambda *_: {})
        out = tmp_path_factory.mktemp("half-network") / "bundle"
        bundle = export_bundle(people["a"], out, options=ExportOptions(precision="fp16", shared=True))
        for name in "bd":
            export_person(people[name], bundle, name)
    return bundle


def write_untuned_run(folder: Path, base: Any, seed: int) -> Path:
    """What `finetune` leaves, after noise in place of training."""
    import torch

    from posecrafter.finetune.person import Person
    from posecrafter.finetune.run_folder import RunFolder
    from posecrafter.finetune.trainable import trained_names
    from posecrafter.pocket.figures import clip

    squares = np.random.default_rng(seed).integers(90, 160, (6, 8, 8, 3), dtype=np.uint8)
    frames, track, prompt = clip(seed, squares, frames=6)
    generator, weights = torch.Generator().manual_seed(seed), dict(base.denoiser.named_parameters())
    changed = {
        name: weights[name].detach() + 0.02 * torch.randn(weights[name].shape, generator=generator)
        for name in trained_names(base.denoiser, "method")
    }
    record = {
        "base": {"source": str(base.source), "controlnet": None, "sha256": base.sha256},
        "width": track.width,
        "height": track.height,
        "frames": len(track),
        "fps": 25.0,
        "prompt": prompt,
        "pose_style": base.pose_style,
        "steps": 0,
    }
    folder.mkdir()
    with torch.inference_mode():
        latents = base.encode_frames(torch.from_numpy(frames))
    RunFolder(folder).finish(Person(changed, "full", base.sha256), track, latents, record)
    return folder
