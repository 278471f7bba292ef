"""A bundle's graphs to one engine's own files: engines/<engine>-<target>/, whole or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posecrafter.errors import EngineError, ExportError
from posecrafter.export.fusion import check_fusion
from posecrafter.export.options import CompileOptions
from posecrafter.export.plugins import PLUGINS
from posecrafter.export.profiles import make_profiles
from posecrafter.export.tensorrt_graph import tensorrt_copy
from posecrafter.export.tensorrt_plan import build_plan
from posecrafter.files import atomic_folder, sha256_of
from posecrafter.manifest import Manifest
from posecrafter.progress import Cancel, Progress, silent
from posecrafter.runtime.engines.built import FOLDER, Built, Part, read_part, source_hash
from posecrafter.runtime.engines.cuda_device import device_target
from posecrafter.runtime.engines.kept import Kept, Origin
from posecrafter.runtime.engines.tensorrt_library import CAPABILITIES, MODULES, load_library

GRAPHS = ("text_encoder", "pose_encoder", "vae_decoder", "denoiser")
"""Quickest first, so that what cannot work fails before the long one."""

TIMING = "timing.cache"
"""What TensorRT measured, kept from one compile to the next."""

Write = Callable[[Path, Progress, Cancel | None], Built]


@dataclass(frozen=True)
class Compiled:
    """folder: the engine's. built: False where nothing had changed since the last time."""

    folder: Path
    record: Built
    built: bool


def compile_bundle(
    bundle: Path | str,
    engine: str,
    options: CompileOptions | None = None,
    progress: Progress = silent,
    cancel: Cancel | None = None,
) -> Compiled:
    """Build a bundle's graphs for `engine`: "tensorrt", "tensorrt-rtx" or "openvino".

    Raises: BundleError; EngineError "engine-unknown", "engine-missing", "engine-device", "engine-precision",
    "plan-build", "attention-unfused", "plugins-missing"; ExportError "bundle-shared", "compile-range",
    "compile-precision", "compile-target", "compile-weights", "compile-busy", "plugins-graph", "plugins-frames",
    "cancelled"; PoseCrafterError "disk-full".
    Whatever is raised, the bundle stays as it was.
    """
    bundle, options = Path(bundle), options or CompileOptions()
    manifest = Manifest.read(bundle)
    manifest.verify(bundle)
    target, wanted, write = _job(bundle, manifest, engine, options)
    folder = bundle / FOLDER / f"{engine}-{target}"
    with _alone(folder):
        there = _unchanged(folder, wanted)
        if there is not None:
            return Compiled(folder, there, built=False)
        with atomic_folder(folder) as temporary:
            if (folder / TIMING).is_file():
                shutil.copyfile(folder / TIMING, temporary / TIMING)
            write(temporary, progress, cancel).write(temporary)
    return Compiled(folder, Built.read(folder), built=True)


def check_bundle(
    bundle: Path | str, engine: str, options: CompileOptions | None = None
) -> dict[str, Mapping[str, int]]:
    """Prove, without building an engine, that every attention would fuse that is not marked as one that may not.

    Returns graph -> {"fused": n, "decomposed": n}. Raises: as `compile_bundle`, of which EngineError
    "attention-unfused" names the graph and the shape.
    """
    bundle, options = Path(bundle), options or CompileOptions()
    manifest = Manifest.read(bundle)
    manifest.verify(bundle)
    if engine not in MODULES:
        raise EngineError("engine-unknown", f"fusing is checked for {' and '.join(MODULES)}, not for {engine!r}")
    precision = _precision(manifest, options)
    trt, told = load_library(engine), {}
    _plugins(manifest, engine, options)
    for graph in GRAPHS:
        marked = tensorrt_copy(_source(bundle, graph, options), precision, options.accumulate)
        check_fusion(trt, graph, marked.model)
        told[graph] = {"fused": marked.fused, "decomposed": marked.decomposed}
    return told


def _job(
    bundle: Path, manifest: Manifest, engine: str, options: CompileOptions
) -> tuple[str, Mapping[str, Any], Write]:
    """The target's name, what a record must say to be up to date, and how to make it."""
    common = {"engine": engine, "sources": {graph: source_hash(manifest, graph) for graph in GRAPHS}}
    plugins = _plugins(manifest, engine, options)
    if engine == "openvino":
        from posecrafter.export import openvino_blob

        return openvino_blob.job(bundle, manifest, options, common)
    if engine not in MODULES:
        raise EngineError(
            "engine-unknown", f"there is no engine {engine!r} to compile for; choose {', '.join(MODULES)}, openvino"
        )
    trt = load_library(engine)
    precision = _precision(manifest, options)
    target = _target(engine, options)
    if options.plugins:
        from posecrafter.export.tensorrt_plugins import register_plugins  # Triton is asked for where it is needed

        register_plugins(trt)
    wanted = {
        **common,
        "version": str(trt.__version__),
        "target": target,
        "precision": precision,
        "options": {"accumulate": options.accumulate, "profiles": _profiles(manifest, options), **plugins},
    }

    def write(folder: Path, progress: Progress, cancel: Cancel | None) -> Built:
        return _write_plans(trt, bundle, manifest, options, wanted, folder, progress, cancel)

    return target, wanted, write


def _write_plans(
    trt: Any, bundle: Path, manifest: Manifest, options: CompileOptions, wanted: Mapping[str, Any],
    folder: Path, progress: Progress, cancel: Cancel | None,
) -> Built:  # fmt: skip
    capabilities = [] if wanted["engine"] == "tensorrt" or wanted["target"] == "any" else wanted["target"].split("+")
    origin = Origin(wanted["version"], wanted["target"])
    timings = Kept(folder / TIMING, origin) if wanted["engine"] == "tensorrt" else None
    graphs = {}
    for graph in GRAPHS:
        source, start = _source(bundle, graph, options), time.perf_counter()
        marked = tensorrt_copy(source, wanted["precision"], options.accumulate)
        profiles = make_profiles(manifest, graph, options.frames, options.size)
        if options.plugins and graph == "denoiser":
            from posecrafter.export.tensorrt_plugins import place_plugins

            most = max(profile.sizes["frames"][2] for profile in profiles)
            place_plugins(marked.model, int(wanted["target"].removeprefix("sm")), most)
        plan = build_plan(trt, marked.model, source, profiles, capabilities, progress, cancel, timings)
        path = folder / f"{graph}.plan"
        path.write_bytes(memoryview(plan.data))
        seconds = round(time.perf_counter() - start, 2)
        size, digest = path.stat().st_size, sha256_of(path)
        graphs[graph] = (
            Part(path.name, size, digest, profiles, seconds, plan.layers, marked.fused, marked.decomposed),
        )
    return Built(**wanted, graphs=graphs)


def _source(bundle: Path, graph: str, options: CompileOptions) -> Path:
    variant = f".{PLUGINS}" if options.plugins and graph == "denoiser" else ""
    return bundle / "graphs" / f"{graph}{variant}.onnx"


def _plugins(manifest: Manifest, engine: str, options: CompileOptions) -> dict[str, str]:
    """What a record says of plugins: the hash of their graph. Raises: EngineError "plugins-missing"; ExportError
    "plugins-graph"."""
    if not options.plugins:
        return {}
    if engine != "tensorrt":
        raise EngineError("plugins-missing", f"{engine} takes no plugins; leave --plugins out, or compile for tensorrt")
    entry = manifest.files.get(f"graphs/denoiser.{PLUGINS}.onnx")
    if entry is None:
        raise ExportError(
            "plugins-graph",
            "the bundle has no graph with plugins; run: posecrafter export --precision fp16 --plugins, or leave "
            "--plugins out",
        )
    return {"plugins": entry.sha256}


def _profiles(manifest: Manifest, options: CompileOptions) -> dict[str, list[str]]:
    return {
        graph: [str(profile) for profile in make_profiles(manifest, graph, options.frames, options.size)]
        for graph in GRAPHS
    }


def _precision(manifest: Manifest, options: CompileOptions) -> str:
    """What a strongly typed network can be built in: what was exported, or bf16 in place of fp16."""
    wanted, exported = options.precision or manifest.precision, manifest.precision
    if wanted != exported and (exported, wanted) != ("fp16", "bf16"):
        export = "fp16" if wanted == "bf16" else wanted
        raise ExportError(
            "compile-precision",
            f"the bundle's graphs are {exported} and TensorRT computes what they say; for {wanted} run: "
            f"posecrafter export --precision {export}",
        )
    return wanted


def _target(engine: str, options: CompileOptions) -> str:
    if engine == "tensorrt":
        here = device_target()
        if options.target not in (None, here):
            raise ExportError(
                "compile-target", f"TensorRT builds for the GPU at hand, {here}, not for {options.target}"
            )
        return here
    if options.target in (None, "any"):
        return "any"
    names = sorted(set(options.target.lower().split(",")), key=lambda name: CAPABILITIES.get(name, 0))
    unknown = [name for name in names if name not in CAPABILITIES]
    if unknown:
        raise ExportError("compile-target", f"--target {unknown[0]} is none of {', '.join(CAPABILITIES)}; or take any")
    return "+".join(names)


def _unchanged(folder: Path, wanted: Mapping[str, Any]) -> Built | None:
    """The record that is there, if it says what is wanted and its files are whole."""
    try:
        record = Built.read(folder)
        for part in record.files:
            read_part(folder, part, "")
    except EngineError:
        return None
    same = all(getattr(record, name) == value for name, value in wanted.items())
    return record if same else None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; it falls with the process that holds it. What a killed one left half-written is removed.

    Raises: ExportError "compile-busy".
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.parent / f".{folder.name}.lock"
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ExportError(
                "compile-busy", f"another compile is writing {folder}; wait for it, it does the same work"
            ) from error
        for left in folder.parent.glob(f".{folder.name}-*"):
            _put_back(left, folder)
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        os.close(handle)


def _put_back(left: Path, folder: Path) -> None:
    """A process that died between moving the old folder away and the new one in: the old one returns."""
    if not folder.exists() and (left / folder.name).is_dir():
        (left / folder.name).replace(folder)
