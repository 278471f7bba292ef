"""Many people, one set of graphs: which weights are a person's, as inputs of the graphs; and a pack of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from posecrafter.errors import ExportError
from posecrafter.export.graphs import Graph, doubles_exactly, make_graphs
from posecrafter.export.options import ExportOptions
from posecrafter.export.parity import check_parity
from posecrafter.export.run import Run
from posecrafter.files import atomic_folder
from posecrafter.finetune.base import Base
from posecrafter.finetune.person import DECODER, Person, load_person
from posecrafter.finetune.trainable import trained_names
from posecrafter.manifest import Manifest
from posecrafter.progress import Cancel, Progress, silent
from posecrafter.runtime.engines.bound import BoundEngine, upload_weights
from posecrafter.runtime.engines.onnxruntime import OnnxRuntimeEngine
from posecrafter.runtime.low_rank import BASE, DOWN, UP, LowRank
from posecrafter.runtime.person import FOLDER, WEIGHTS, Pack, read_weights

_METHOD = (".attn1.to_out.0.", ".attn_temp.", ".conv_temp.")
_FOLDED = ".attn_temp.to_out."

STEP = "denoiser/denoiser."
"""How a pack names the denoiser's tensors: the graph, then its module's."""

Names = Mapping[str, Mapping[str, list[int]]]
"""Graph -> input -> shape: a manifest's `shared`."""


def personal_names(graph: Graph, exported: nn.Module, trained: Iterable[str]) -> dict[str, list[int]]:
    """The parameters of a graph's exported module that are a person's, and their shapes.

    trained: names of a person file's tensors. Where only the method's matrices were tuned, these; where all were, all.
    """
    parameters = dict(exported.named_parameters())
    tuned = [
        name.removeprefix(DECODER) for name in trained if name.startswith(DECODER) == (graph.name == "vae_decoder")
    ]
    if graph.name == "vae_decoder":
        names = [name for name in parameters if name in set(tuned)]
    elif graph.name == "denoiser" and all(any(part in name for part in _METHOD) for name in tuned):
        names = [name for name in parameters if any(part in name for part in _METHOD)]
    elif graph.name == "denoiser":
        names = list(parameters)
    else:
        names = []
    return {name: list(parameters[name].shape) for name in names}


def pack_weights(graphs: Mapping[str, nn.Module], names: Names) -> dict[str, Tensor]:
    """A person's tensors for `weights.safetensors`: "<graph>/<input>". graphs: the exported modules."""
    packed = {}
    for graph, own in names.items():
        parameters = dict(graphs[graph].named_parameters())
        for name in own:
            packed[f"{graph}/{name}"] = parameters[name].detach().contiguous().clone()
    return packed


def low_rank_weights(graphs: Mapping[str, nn.Module], names: Names, person: Person) -> dict[str, Tensor]:
    """`pack_weights` with a person's factors in place of the matrices that they give.

    A temporal output projection stays full: conv_temp, which is no low-rank update, is folded into it.
    """
    packed = pack_weights(graphs, names)
    for name, factor in person.tensors.items():
        layer = f"{STEP}{name.removesuffix(DOWN).removesuffix(UP)}"
        if name.endswith((DOWN, UP)) and not name.startswith(DECODER) and _FOLDED not in name:
            packed.pop(f"{layer}.weight", None)
            packed[STEP + name] = (factor if factor.dtype == torch.float16 else factor.float()).contiguous()
    return packed


def base_matrices(base: Base) -> dict[str, Tensor]:
    """What low-rank packs are added to, "denoiser/<input>" -> a copy; taken before a person is put into the base."""
    weights = dict(base.denoiser.named_parameters())
    return {
        STEP + name: weights[name].detach().clone()
        for name in trained_names(base.denoiser, "method")
        if name.endswith(".weight") and ".conv_temp." not in name and _FOLDED not in name
    }


def write_base(bundle: Path, matrices: Mapping[str, Tensor], names: Names, precision: str) -> None:
    """Write those of `base_matrices` that are inputs of the bundle's graphs, in its precision."""
    inputs = {f"{graph}/{name}" for graph, own in names.items() for name in own}
    dtype = torch.float16 if precision == "fp16" else torch.float32
    held = {name: matrix.to(dtype).contiguous() for name, matrix in matrices.items() if name in inputs}
    (bundle / BASE).write_bytes(save(held))


def write_pack(folder: Path, run: Run, text: Tensor, weights: Mapping[str, Tensor]) -> None:
    """Write a pack's files but for its record: `seal` does that, last."""
    for name in ("poses.json", "latents.safetensors"):
        (folder / name).write_bytes((run.folder / name).read_bytes())
    (folder / "text.safetensors").write_bytes(save({"empty": text[0].contiguous(), "prompt": text[1].contiguous()}))
    (folder / WEIGHTS).write_bytes(save(dict(weights)))


def bound(
    folder: Path, weights: Path, manifest: Manifest, portable: bool = False, low_rank: LowRank | None = None
) -> BoundEngine:
    """ONNX Runtime on a shared bundle's graphs, with the weights of a file as the runtime reads them."""
    engine = OnnxRuntimeEngine(folder, portable=portable)
    return BoundEngine(engine, upload_weights(engine, read_weights(weights, manifest, low_rank, folder)))


def export_person(
    run: Path | str,
    bundle: Path | str,
    name: str,
    *,
    base: Path | str | None = None,
    full_matrices: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
    cancel: Cancel | None = None,
) -> Path:
    """Add a run's person to a shared bundle as `persons/<name>/`, once it is proved; returns that folder.

    A run that tuned low-rank updates gives a pack of these. full_matrices: merge them now instead, for readers that
    know nothing else; so does a bundle that holds no base's matrices.
    Raises: BundleError; ExportError "bundle-merged", "person-name", "bundle-exists", "base-differs", "pack-differs",
    "parity", "cancelled". Whatever is raised, the bundle stays as it was.
    """
    from posecrafter.export.export import exported_copy, make_sample

    bundle = Path(bundle)
    manifest = Manifest.read(bundle)
    manifest.verify(bundle)
    out = bundle / FOLDER / name
    if manifest.kind != "shared":
        raise ExportError("bundle-merged", f"{bundle} holds one merged person; export it with --shared to add others")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
        raise ExportError("person-name", f"--person is {name!r}; take letters, digits, dots, - and _")
    if out.exists() and not overwrite:
        raise ExportError("bundle-exists", f"{bundle} has a person {name!r} already; --overwrite replaces it")
    tuned = Run.read(run)
    model = tuned.load(base)
    if model.sha256 != manifest.provenance["base_sha256"]:
        raise ExportError(
            "base-differs",
            f"the run was tuned on the base {model.sha256[:12]}, the bundle's is "
            f"{manifest.provenance['base_sha256'][:12]}; export it into a bundle of its own",
        )
    options = ExportOptions(precision=manifest.precision, shared=True)  # type: ignore[arg-type]
    reference, text = make_graphs(model), model.encode_text(["", tuned.record["prompt"]])
    sides = manifest.height.divided(model.factor)
    doubles = doubles_exactly(sides)
    modules = {graph: exported_copy(reference[graph].module, options, doubles) for graph in manifest.shared}
    person = load_person(tuned.folder / "person.safetensors")
    for graph, module in modules.items():
        extra = personal_names(reference[graph], module, person.tensors).keys() - manifest.shared[graph].keys()
        if extra:
            raise ExportError(
                "pack-differs",
                f"the run tuned {min(extra)} of '{graph}', which the bundle's people share; "
                "export it into a bundle of its own",
            )
    thin = person.kind == "lora" and BASE in manifest.files and not full_matrices
    low_rank = LowRank(person.rank, person.scale) if thin else None
    weights = low_rank_weights(modules, manifest.shared, person) if thin else pack_weights(modules, manifest.shared)
    with atomic_folder(out) as folder:
        write_pack(folder, tuned, text, weights)
        record = tuned.record
        engines = [bound(bundle, folder / WEIGHTS, manifest, portable, low_rank) for portable in (False, True)]
        sample = make_sample(tuned, model, text, replace(manifest, fps=record["fps"]))
        parity = check_parity(bundle, reference, sample, options.precision, sides, progress, cancel, engines)
        Pack(
            base_sha256=model.sha256,
            training_frames=len(tuned.latents),
            fps=record["fps"],
            prompt=record["prompt"],
            width=record["width"],
            height=record["height"],
            files=Manifest.entries(folder),
            parity=parity,
            low_rank=low_rank,
        ).write(folder)
    return out
