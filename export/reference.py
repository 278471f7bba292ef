"""The reference: a run's own modules, in memory, behind the same session that bundles have.

On a GPU the same modules are the fast path of PyTorch: half precision, channels-last, and with `kernels` the fused
operators in their layers' places.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import torch

from posecrafter.errors import EngineError
from posecrafter.export.describe import describe
from posecrafter.export.graphs import Graph, PoseEncoder, make_graphs
from posecrafter.export.options import ExportOptions, Precision
from posecrafter.export.run import Run
from posecrafter.finetune.base import Base
from posecrafter.runtime import Bundle, Session
from posecrafter.runtime.engines.torch import EditingTorchEngine, TorchEngine


@dataclass(frozen=True)
class TorchOptions:
    """How the `torch` engine runs a tuning run.

    device: "cpu", "cuda", "cuda:1". kernels: the fused operators (on a CPU their twins). precision: None for fp16 on
    CUDA and fp32 on a CPU. record: see TorchEngine.
    """

    device: str = "cpu"
    kernels: bool = False
    precision: str | None = None
    record: bool | None = None

    def __post_init__(self) -> None:
        """Raises: EngineError "device-unknown", "device-missing", "engine-missing", "engine-precision"."""
        try:
            kind = torch.device(self.device).type
        except RuntimeError as error:
            raise EngineError("device-unknown", f"device is {self.device!r}; give cpu, cuda or cuda:1") from error
        if kind not in ("cpu", "cuda"):
            raise EngineError("device-unknown", f"device is {self.device!r}; give cpu, cuda or cuda:1")
        if kind == "cuda" and not torch.cuda.is_available():
            raise EngineError("device-missing", "this PyTorch sees no CUDA device; leave --device out for the CPU")
        if self.kernels and find_spec("triton") is None:
            raise EngineError("engine-missing", "the kernels need triton; run: pip install 'posecrafter[cuda]'")
        if self.kernels and kind == "cuda" and self.computed == "fp32":
            raise EngineError("engine-precision", "on CUDA the kernels run in fp16; leave fp32 out, or the kernels")
        if self.precision not in (None, "fp32", "fp16"):
            raise EngineError("engine-precision", f"engine 'torch' runs in fp32 or fp16, not in {self.precision!r}")

    @property
    def computed(self) -> Precision:
        """The precision of weights and network."""
        if self.precision is not None:
            return cast(Precision, self.precision)
        return "fp16" if torch.device(self.device).type == "cuda" else "fp32"


def reference_graphs(run: Path | str) -> dict[str, Graph]:
    """The modules that `export` traces, before anything is folded or converted. Raises: as `Run.read`, `Run.load`."""
    return make_graphs(Run.read(run).load())


def open_reference(run: Path | str, options: TorchOptions | None = None) -> Session:
    """A session on PyTorch, straight from a run folder. Raises: as `Run.read` and `Run.load`; EngineError."""
    tuned = Run.read(run)
    return reference_session(tuned, tuned.load(), options)


def reference_session(tuned: Run, model: Base, options: TorchOptions | None = None) -> Session:
    """A session of a run's poses and latents on PyTorch with `model`, usually `tuned.load()`."""
    options = options or TorchOptions()
    graphs = {name: prepared(graph, options) for name, graph in make_graphs(model).items()}
    named = {name: graph.parts for name, graph in graphs.items()}
    bundle = bundle_in_memory(tuned, model, options.computed)
    if not options.kernels:
        return Session(bundle, TorchEngine(named, options.device, options.record))
    from posecrafter.kernels.warp_latents import warp

    return Session(bundle, EditingTorchEngine(named, warp, options.device, options.record))


def bundle_in_memory(tuned: Run, model: Base, precision: Precision = "fp32") -> Bundle:
    """What an export of the run would hold besides graphs. model: the run's base with the person in it."""
    empty, prompt = model.encode_text(["", tuned.record["prompt"]]).numpy()
    manifest = describe(tuned, model, ExportOptions(precision=precision))
    bundle = Bundle(manifest, tuned.poses, tuned.latents.numpy(), prompt, empty)
    bundle.check()
    return bundle


def prepared(graph: Graph, options: TorchOptions) -> Graph:
    """The graph as the engine runs it: kernels placed, converted to the precision and the device's memory order."""
    module = graph.module
    if options.kernels and graph.name == "denoiser":
        from posecrafter.export.fused import place_kernels

        module = place_kernels(module)
    if options.computed == "fp16":
        module = module.half()
        if isinstance(module, PoseEncoder):
            module = PoseEncoder(module.embedding, torch.float16)
    if torch.device(options.device).type == "cuda":
        module = module.to(memory_format=torch.channels_last)
    return replace(graph, module=module)
