"""OpenVINO's compiled models as files: a session imports them in a third of the time that compiling takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from posecrafter.errors import EngineError, ExportError
from posecrafter.export.options import CompileOptions
from posecrafter.export.profiles import CHUNK, LIKELY, make_profiles
from posecrafter.files import sha256_of
from posecrafter.manifest import Manifest
from posecrafter.progress import Cancel, Progress
from posecrafter.runtime.engines.built import Built, Part, Profile
from posecrafter.runtime.engines.onnxruntime import OnnxRuntimeEngine

TARGET = "cpu"

Sizes = dict[str, int]


def job(
    bundle: Path, manifest: Manifest, options: CompileOptions, common: Mapping[str, Any]
) -> tuple[str, dict[str, Any], Callable[[Path, Progress, Cancel | None], Built]]:
    """As `compile` wants it: the target's name, what an up-to-date record says, and how to make it.

    A graph that the runtime compiles for any size is left out: no session would read what was kept of it.
    Raises: EngineError "engine-missing", "engine-precision"; ExportError "bundle-shared", "compile-range",
    "compile-target", "compile-weights".
    """
    try:
        from posecrafter.runtime.engines import openvino as adapter
    except ImportError as error:
        raise EngineError("engine-missing", "openvino is not installed; run: pip install openvino") from error
    if options.target not in (None, TARGET):
        raise ExportError("compile-target", f"OpenVINO builds for this machine's CPU, not for {options.target}")
    if manifest.kind == "shared":
        raise ExportError(
            "bundle-shared",
            "a shared bundle's graphs take the person's weights as inputs, which OpenVINO's files cannot hold; run it "
            "uncompiled, or export without --shared to compile",
        )
    engine = adapter.OpenVinoEngine(bundle, precision=options.precision or "fp32", static=True)
    cases = {
        graph: profiles
        for graph, profiles in _cases(manifest, options).items()
        if adapter.compiled_by_size(bundle, graph)
    }
    if not cases:
        raise ExportError(
            "compile-weights",
            "every graph's weights exceed what OpenVINO compiles for one size, so that it would read no file; run the "
            "bundle uncompiled",
        )
    wanted = {
        **common,
        "version": adapter.VERSION,
        "target": TARGET,
        "precision": options.precision or "fp32",
        "options": {
            "capabilities": engine.capabilities,
            "sizes": {graph: [str(profile) for profile in profiles] for graph, profiles in cases.items()},
        },
    }

    def write(folder: Path, progress: Progress, cancel: Cancel | None) -> Built:
        onnxruntime = OnnxRuntimeEngine(bundle)
        total, done = sum(map(len, cases.values())), 0
        graphs: dict[str, tuple[Part, ...]] = {}
        parity: dict[str, float] = {}
        try:
            for graph, profiles in cases.items():
                for profile in profiles:
                    if cancel is not None and cancel():
                        raise ExportError("cancelled", f"stopped before {graph} for {profile}; nothing was written")
                    progress("compile", done, total, f"{graph}, {profile}")
                    inputs = _inputs(manifest, graph, {name: low for name, (low, _, _) in profile.sizes.items()})
                    start = time.perf_counter()
                    buffers = {name: engine.upload(value) for name, value in inputs.items()}
                    name, blob = engine.load(graph).export(buffers)
                    (folder / name).write_bytes(blob)
                    seconds = round(time.perf_counter() - start, 2)
                    part = Part(name, len(blob), sha256_of(folder / name), (profile,), seconds)
                    graphs[graph] = (*graphs.get(graph, ()), part)
                    parity[graph] = max(parity.get(graph, 0.0), _distance(graph, engine, onnxruntime, inputs))
                    done += 1
        finally:
            onnxruntime.close()
            engine.close()
        progress("compile", total, total)
        return Built(**wanted, graphs=graphs, parity={name: float(f"{value:.3g}") for name, value in parity.items()})

    return TARGET, wanted, write


def _cases(manifest: Manifest, options: CompileOptions) -> dict[str, tuple[Profile, ...]]:
    """The exact sizes that requests of `options.frames` frames have, with the bundle's default guidance."""
    frames = options.frames or (min(LIKELY, manifest.frames.max),)
    prompts = 1 if manifest.defaults.guidance == 1 else 2
    place = make_profiles(manifest, "vae_decoder", frames, options.size)[0].sizes
    pixels = {"height": place["h"][0] * manifest.latents.factor, "width": place["w"][0] * manifest.latents.factor}
    cells = {"h": place["h"][0], "w": place["w"][0]}
    passes = sorted({1, *frames})
    targets = [count - 1 for count in frames if count > 1]
    chunks = sorted({min(CHUNK, count) for count in targets} | {count % CHUNK for count in targets} - {0})
    cases: dict[str, list[Sizes]] = {
        "text_encoder": [{"prompts": 1}],
        "pose_encoder": [{"frames": count, **pixels} for count in passes],
        "vae_decoder": [{"frames": count, **cells} for count in chunks],
        "denoiser": [{"frames": count, **cells, "prompts": 1 if count == 1 else prompts} for count in passes],
    }
    return {
        graph: tuple(Profile({name: (size,) * 3 for name, size in sizes.items()}) for sizes in all_sizes)
        for graph, all_sizes in cases.items()
    }


def _inputs(manifest: Manifest, graph: str, sizes: Sizes) -> dict[str, np.ndarray]:
    """Inputs of the bundle's kind: random latents and text, a black and white pose map."""
    m, random = manifest, np.random.default_rng(0)
    prompts, frames = sizes.get("prompts", 1), sizes.get("frames", 1)
    if graph == "text_encoder":
        return {"input_ids": random.integers(0, 50, (prompts, m.text.tokens))}
    if graph == "pose_encoder":
        black = np.zeros((frames, 3, sizes["height"], sizes["width"]), np.float32)
        black[:, :, ::9, ::7] = 1
        return {"control_images": black}
    x = random.standard_normal((frames, m.latents.channels, sizes["h"], sizes["w"]), np.float32)
    if graph == "vae_decoder":
        return {"latents": x}
    return {
        "x": x,
        "timestep": np.array([m.schedule.train_steps // 2 + 1]),
        "a": np.array(1.02, np.float32),
        "b": np.array(-0.13, np.float32),
        "text": random.standard_normal((prompts, m.text.tokens, m.text.width), np.float32),
        "weight": np.full(prompts, 1 / prompts, np.float32),
        "pose_features": random.standard_normal((frames, m.network_width, sizes["h"], sizes["w"]), np.float32),
        "control_scale": np.array(1.0, np.float32),
    }


def _distance(graph: str, ours: Any, theirs: Any, inputs: Mapping[str, np.ndarray]) -> float:
    """The largest relative l2 distance from ONNX Runtime over the graph's outputs."""
    results = []
    for engine in (ours, theirs):
        buffers = {name: engine.upload(value) for name, value in inputs.items()}
        results.append({name: engine.download(value) for name, value in engine.load(graph).run(buffers).items()})
    found, expected = results
    return max(
        float(np.linalg.norm(found[name] - value) / max(np.linalg.norm(value), 1e-30))
        for name, value in expected.items()
    )
