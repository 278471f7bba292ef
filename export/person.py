"""A run's person into a shared bundle, as a pack of the weights that its graphs take."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from posecrafter.errors import ExportError
from posecrafter.export.export import exported_copy, make_sample
from posecrafter.export.graphs import Graph, doubles_exactly, make_graphs
from posecrafter.export.options import ExportOptions
from posecrafter.export.parity import check_parity
from posecrafter.export.run import Run
from posecrafter.export.shared import FOLDED, STEP, Names, bound, pack_weights, personal_names
from posecrafter.files import atomic_folder
from posecrafter.finetune.base import Base
from posecrafter.finetune.person import DECODER, Person
from posecrafter.manifest import Manifest
from posecrafter.progress import Cancel, Progress, silent
from posecrafter.runtime.low_rank import BASE, DOWN, UP, LowRank
from posecrafter.runtime.person import FOLDER, WEIGHTS, Pack


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
    bundle = Path(bundle)
    manifest = Manifest.read(bundle)
    manifest.verify(bundle)
    out = bundle / FOLDER / name
    _check_target(bundle, manifest, name, overwrite)
    tuned = Run.read(run)
    model = tuned.load(base)
    _check_base(model, manifest)
    options = ExportOptions(precision=manifest.precision, shared=True)  # type: ignore[arg-type]
    reference, text = make_graphs(model), model.encode_text(["", tuned.record["prompt"]])
    sides = manifest.height.divided(model.factor)
    doubles = doubles_exactly(sides)
    modules = {graph: exported_copy(reference[graph].module, options, doubles) for graph in manifest.shared}
    person = tuned.person()
    _check_tuned(person, reference, modules, manifest)
    thin = person.kind == "lora" and BASE in manifest.files and not full_matrices
    low_rank = LowRank(person.rank, person.scale) if thin else None
    weights = low_rank_weights(modules, manifest.shared, person) if thin else pack_weights(modules, manifest.shared)
    with atomic_folder(out) as folder:
        tuned.write_person(folder, text)
        (folder / WEIGHTS).write_bytes(save(weights))
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


def _check_target(bundle: Path, manifest: Manifest, name: str, overwrite: bool) -> None:
    if manifest.kind != "shared":
        raise ExportError("bundle-merged", f"{bundle} holds one merged person; export it with --shared to add others")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
        raise ExportError("person-name", f"--person is {name!r}; take letters, digits, dots, - and _")
    if (bundle / FOLDER / name).exists() and not overwrite:
        raise ExportError("bundle-exists", f"{bundle} has a person {name!r} already; --overwrite replaces it")


def _check_base(base: Base, manifest: Manifest) -> None:
    if base.sha256 != manifest.provenance["base_sha256"]:
        raise ExportError(
            "base-differs",
            f"the run was tuned on the base {base.sha256[:12]}, the bundle's is "
            f"{manifest.provenance['base_sha256'][:12]}; export it into a bundle of its own",
        )


def _check_tuned(
    person: Person, reference: Mapping[str, Graph], modules: Mapping[str, nn.Module], manifest: Manifest
) -> None:
    """That the run tuned nothing which the bundle's people share."""
    for graph, module in modules.items():
        extra = personal_names(reference[graph], module, person.tensors).keys() - manifest.shared[graph].keys()
        if extra:
            raise ExportError(
                "pack-differs",
                f"the run tuned {min(extra)} of '{graph}', which the bundle's people share; "
                "export it into a bundle of its own",
            )


def low_rank_weights(graphs: Mapping[str, nn.Module], names: Names, person: Person) -> dict[str, Tensor]:
    """`pack_weights` with a person's factors in place of the matrices that they give.

    A temporal output projection stays full: conv_temp, which is no low-rank update, is folded into it.
    """
    packed = pack_weights(graphs, names)
    for name, factor in person.tensors.items():
        layer = f"{STEP}{name.removesuffix(DOWN).removesuffix(UP)}"
        if name.endswith((DOWN, UP)) and not name.startswith(DECODER) and FOLDED not in name:
            packed.pop(f"{layer}.weight", None)
            packed[STEP + name] = (factor if factor.dtype == torch.float16 else factor.float()).contiguous()
    return packed
