"""What the engine 'native' takes to open a network and to pack a person: seconds, and memory at its highest.

    python -m posecrafter.bench.packing WORK --out bench/results/packing.jsonl
    python -m posecrafter.bench.packing BUNDLE --bundle        # of a bundle, in place of random weights

Without a bundle it is a denoiser of Stable Diffusion 1.5's size in fp32, its matrices as they lie in bundles: 4.9 GB in
WORK, left there for the next call. Its person's weights lie in it too ("merged"), or are packed afterwards, for two
people ("shared"). Every figure is a fresh process's; the memory counts what is mapped of the file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from posecrafter.bench.machine import resident_mib
from posecrafter.bench.records import write_record
from posecrafter.manifest import NAME, Manifest

POOL = 2**24
"""Random numbers, from which every tensor is filled again and again."""


def write_index(folder: Path, shared: bool) -> None:
    """`graphs/denoiser.layers` of random weights, and the shapes of what is a person's, in `shapes.json`."""
    import torch

    from posecrafter.bench.speed.large import SD15
    from posecrafter.export.export import ExportOptions, exported_copy
    from posecrafter.export.graphs import Graph, Step
    from posecrafter.export.layers import ALIGNED, header_of, tensors_of
    from posecrafter.export.shared import personal_names
    from posecrafter.finetune.network import VideoControlNet, VideoDenoiser, VideoUNet
    from posecrafter.finetune.trainable import trained_names

    with torch.device("meta"):
        denoiser = VideoDenoiser(VideoUNet.from_config(SD15), VideoControlNet.from_config(SD15))
        trained = trained_names(denoiser, "method")
        module = exported_copy(Step(denoiser), ExportOptions(), doubles=True)
    graph = Graph("denoiser", module, {}, {})
    personal = personal_names(graph, module, trained) if shared else {}
    lines, end, sizes = [], 0, []
    for key, (name, tensor) in tensors_of(graph).items():
        told = f"{tensor.ndim} {' '.join(map(str, tensor.shape))}"
        if key in personal:
            lines.append(f"input {name} f32 {key} {told}")
            continue
        lines.append(
            f"tensor {name} f32 - {end} {4 * tensor.numel()} {'transposed' if tensor.ndim == 2 else 'plain'} {told}"
        )
        sizes.append(tensor.numel())
        end += 4 * tensor.numel() + -4 * tensor.numel() % ALIGNED
    (folder / "graphs").mkdir(parents=True)
    pool = 0.02 * np.random.default_rng(0).standard_normal(POOL, np.float32)
    with (folder / "graphs" / "denoiser.layers").open("wb") as file:
        file.write(header_of(graph, lines))
        for size in sizes:
            for start in range(0, size, POOL):
                file.write(pool[: min(POOL, size - start)].tobytes())
            file.write(bytes(-4 * size % ALIGNED))
    (folder / "shapes.json").write_text(json.dumps(personal), encoding="utf-8")


def measure(folder: Path, threads: int) -> dict[str, Any]:
    """The figures of this process, which nothing else has run in: of opening what is merged, or of two people."""
    from posecrafter.runtime.engines.native import NativeEngine

    shapes, dtype = _personal(folder)
    engine, before = NativeEngine(folder, threads), resident_mib()
    random, people, told = np.random.default_rng(1), [], {}
    weights = {name: random.standard_normal(shape, np.float32).astype(dtype) for name, shape in shapes.items()}
    for person in range(2 if shapes else 0):
        for array in weights.values():  # the same memory, so that what grows is the engine's
            array *= 2
        held = resident_mib()
        clock = _Clock()
        people.append(engine.pack("denoiser", weights))
        told |= {f"person_{person}": {**clock.figures(), "mib": round(resident_mib() - held, 1)}}
    if not shapes:
        clock = _Clock()
        engine.load("denoiser")
        told |= {**clock.figures(), "mib": round(resident_mib() - before, 1)}
    return {"threads": threads, "before_mib": round(before, 1), "peak_mib": round(resident_mib("VmHWM"), 1), **told}


def _personal(folder: Path) -> tuple[Mapping[str, list[int]], np.dtype[Any]]:
    """Shapes of what is a person's, and its type."""
    if (folder / NAME).is_file():
        manifest = Manifest.read(folder)
        return manifest.shared.get("denoiser", {}), np.dtype(np.float16 if manifest.precision == "fp16" else np.float32)
    return json.loads((folder / "shapes.json").read_text(encoding="utf-8")), np.dtype(np.float32)


class _Clock:
    def __init__(self) -> None:
        self._start, self._used = time.perf_counter(), time.process_time()

    def figures(self) -> dict[str, float]:
        now, used = time.perf_counter() - self._start, time.process_time() - self._used
        return {"seconds": float(f"{now:.4g}"), "cpu_seconds": float(f"{used:.4g}")}


def record(folder: Path, case: str, threads: int) -> dict[str, Any]:
    """`measure` in a process of its own."""
    command = [sys.executable, "-m", __spec__.name, str(folder), "--child", str(threads)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {"case": f"packing {case}", **json.loads(done.stdout)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--bundle", action="store_true")
    parser.add_argument("--out", type=Path, help="a file of JSON lines to append the records to")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.child is not None:
        print(json.dumps(measure(words.work, words.child)))
        return
    folders = {f"{kind}, SD 1.5's size": words.work / kind for kind in ("merged", "shared")}
    if words.bundle:
        folders = {"a bundle": words.work}
    for case, folder in folders.items():
        if not words.bundle and not (folder / "shapes.json").is_file():
            write_index(folder, shared=folder.name == "shared")
        for threads in (1, 2):
            write_record(words.out, record(folder, case, threads), threads)


if __name__ == "__main__":
    main()
