"""What TensorRT's plans of a bundle hold and what they cost to build: a record of `posecrafter compile`.

    python -m posecrafter.bench.plans BUNDLE --engine tensorrt-rtx --frames 17 --target sm89 --out records.jsonl

Plans are built anew in a copy of the bundle, so the seconds are this machine's; building needs no GPU.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from posecrafter.bench.records import write_record
from posecrafter.export.compile import compile_bundle
from posecrafter.export.options import CompileOptions
from posecrafter.manifest import Manifest
from posecrafter.runtime.engines.built import FOLDER


def record(bundle: Path, engine: str, options: CompileOptions) -> dict[str, Any]:
    """Build every graph's plan. Seconds are the wall's for each graph, and the processors' for all of them."""
    with tempfile.TemporaryDirectory(prefix="posecrafter-plans-") as folder:
        copy = Path(shutil.copytree(bundle, Path(folder) / "bundle", ignore=shutil.ignore_patterns(FOLDER)))
        used = time.process_time()
        built = compile_bundle(copy, engine, options).record
        used = time.process_time() - used
    m = Manifest.read(bundle)
    graphs = {
        graph: {
            "layers": sum(part.layers for part in parts),
            "fused_attentions": sum(part.fused for part in parts),
            "decomposed_attentions": sum(part.decomposed for part in parts),
            "plan_bytes": sum(part.bytes for part in parts),
            "seconds": round(sum(part.seconds for part in parts), 2),
        }
        for graph, parts in built.graphs.items()
    }
    return {
        "case": f"{engine} plans of a bundle",
        "network": f"{m.network_width} channels wide, {m.precision}",
        "precision": built.precision,
        "target": built.target,
        "sizes": {graph: [str(profile) for part in parts for profile in part.profiles]
                  for graph, parts in built.graphs.items()},
        "graphs": graphs,
        "cpu_seconds": round(used, 1),
        "version": built.version,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--engine", default="tensorrt-rtx")
    parser.add_argument("--frames", type=int, nargs="*", default=[])
    parser.add_argument("--target")
    parser.add_argument("--out", type=Path, help="a file of JSON lines to append the record to")
    words = parser.parse_args()
    made = record(words.bundle, words.engine, CompileOptions(target=words.target, frames=tuple(words.frames)))
    write_record(words.out, made)


if __name__ == "__main__":
    main()
