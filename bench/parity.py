"""How far each engine on this machine is from PyTorch in fp32, graph by graph and after a run of the solver:

    python -m posecrafter.bench.parity RUN BUNDLE --out records.jsonl

RUN is the tuning run that BUNDLE was exported from. The figures are relative l2 distances, over the same inputs as
`export` compares; "latents" is after 10 inversion and 10 guided sampling steps.
"""

from __future__ import annotations

import argparse
from importlib.metadata import version
from pathlib import Path
from typing import Any

from posecrafter.bench.records import write_record
from posecrafter.export.export import make_sample
from posecrafter.export.graphs import make_graphs
from posecrafter.export.parity import graph_distance, latent_distance
from posecrafter.export.run import Run
from posecrafter.manifest import Manifest
from posecrafter.runtime.engines import PRECISE, open_engine
from posecrafter.runtime.engines.base import Engine
from posecrafter.runtime.engines.processor import has_bf16
from posecrafter.runtime.engines.torch import TorchEngine


def record(run: Path, bundle: Path, engines: dict[str, Engine]) -> dict[str, Any]:
    """Distances by engine and graph. Closes the engines."""
    tuned, manifest = Run.read(run), Manifest.read(bundle)
    base = tuned.load()
    graphs = make_graphs(base)
    theirs = TorchEngine({name: graph.parts for name, graph in graphs.items()})
    sample = make_sample(tuned, base, base.encode_text(["", tuned.record["prompt"]]), manifest)
    sides = manifest.height.divided(base.factor)
    figures = {}
    for name, engine in engines.items():
        distances = {graph: graph_distance(graph, engine, theirs, sample, sides) for graph in graphs}
        distances["latents"] = latent_distance(engine, theirs, sample)
        figures[name] = {graph: float(f"{distance:.2g}") for graph, distance in distances.items()}
        engine.close()
    network = f"{manifest.network_width} channels wide, {manifest.precision}"
    return {"case": "distance from PyTorch in fp32", "network": network, "engines": figures}


def engines_of(bundle: Path) -> dict[str, Engine]:
    """What a CPU can run the bundle with, in each precision that it has."""
    packages = {"onnxruntime": "onnxruntime", "openvino": "openvino", "native": "posecrafter"}
    opened = {f"{name} {version(package)}": open_engine(name, bundle) for name, package in packages.items()}
    if has_bf16():
        for name in PRECISE:
            opened[f"{name} {version(packages[name])}, bf16"] = open_engine(name, bundle, precision="bf16")
    return opened


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path, help="a file of JSON lines to append the record to")
    words = parser.parse_args()
    write_record(words.out, record(words.run, words.bundle, engines_of(words.bundle)))


if __name__ == "__main__":
    main()
