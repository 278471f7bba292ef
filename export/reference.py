"""The reference: a run's own modules, in memory, behind the same session that bundles have."""

from __future__ import annotations

from pathlib import Path

from posecrafter.export.describe import describe
from posecrafter.export.graphs import Graph, make_graphs
from posecrafter.export.options import ExportOptions
from posecrafter.export.run import Run
from posecrafter.finetune.base import Base
from posecrafter.runtime import Bundle, Session
from posecrafter.runtime.engines.torch import TorchEngine


def reference_graphs(run: Path | str, base: Path | str | None = None) -> dict[str, Graph]:
    """The modules that `export` traces, before anything is folded or converted. Raises: as `Run.read`, `Run.load`."""
    return make_graphs(Run.read(run).load(base))


def open_reference(run: Path | str, base: Path | str | None = None, device: str = "cpu") -> Session:
    """A session on eager PyTorch, straight from a run folder. Raises: as `Run.read` and `Run.load`."""
    tuned = Run.read(run)
    return reference_session(tuned, tuned.load(base), device)


def reference_session(tuned: Run, model: Base, device: str = "cpu") -> Session:
    """A session of a run's poses and latents on eager PyTorch with `model`, usually `tuned.load()`."""
    graphs = make_graphs(model)
    engine = TorchEngine({g.name: (g.module, tuple(g.inputs), tuple(g.outputs)) for g in graphs.values()}, device)
    return Session(bundle_in_memory(tuned, model), engine)


def bundle_in_memory(run: Run, model: Base) -> Bundle:
    """What an export of the run would hold besides graphs. model: the run's base with the person in it."""
    empty, prompt = model.encode_text(["", run.record["prompt"]]).numpy()
    bundle = Bundle(describe(run, model, ExportOptions()), run.poses, run.latents.numpy(), prompt, empty)
    bundle.check()
    return bundle
