"""A fine-tuning run to a bundle: merge, trace, write, prove; the bundle appears whole or not at all."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save
from tokenizers import Tokenizer
from torch import nn
from transformers import CLIPTokenizer

from posecrafter.errors import ExportError
from posecrafter.export.describe import describe
from posecrafter.export.graphs import Graph, doubles_exactly, make_graphs, make_ranges
from posecrafter.export.layers import save_layers
from posecrafter.export.nodes import place_nodes
from posecrafter.export.options import ExportOptions
from posecrafter.export.parity import Sample, check_parity
from posecrafter.export.plugins import PLUGINS
from posecrafter.export.run import Run
from posecrafter.export.save import save_graph, save_variant
from posecrafter.export.shared import base_matrices, bound, pack_weights, personal_names, write_base
from posecrafter.export.trace import trace, translate
from posecrafter.files import atomic_folder
from posecrafter.finetune.base import Base
from posecrafter.finetune.network import VideoUNet
from posecrafter.manifest import NAME, Manifest, Range
from posecrafter.progress import Cancel, Progress, silent
from posecrafter.runtime.person import WEIGHTS

__all__ = ["ExportOptions", "export_bundle"]


def export_bundle(
    run: Path | str,
    out: Path | str,
    *,
    base: Path | str | None = None,
    options: ExportOptions | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
    cancel: Cancel | None = None,
) -> Path:
    """Write the bundle `out` of the run folder `run`; returns its path.

    base: where the base model is, if not where the run found it; it must be the same to the bit.
    Raises: ExportError "bundle-exists", "run-missing", "run-format", "run-incomplete", "base-differs",
    "range-narrowed", "tokenizer", "parity", "cancelled"; BaseModelError; PoseCrafterError "disk-full".
    Whatever is raised, `out` stays as it was.
    """
    out, options = Path(out), options or ExportOptions()
    _check_target(out, overwrite)
    tuned = Run.read(run)
    model = tuned.load_base(base)
    plain = base_matrices(model) if options.shared else {}
    tuned.apply(model)
    reference, text = make_graphs(model), model.encode_text(["", tuned.record["prompt"]])
    with atomic_folder(out) as folder:
        (folder / "person").mkdir()
        shutil.copyfile(tuned.folder / "person.safetensors", folder / "person" / "person.safetensors")
        tuned.write_person(folder / "person", text)
        (folder / "graphs").mkdir()
        write_tokenizer(folder / "graphs" / "tokenizer.json", model.tokenizer, ["", tuned.record["prompt"]])
        ranges = make_ranges(model, options)
        sides = ranges["h"]
        copies = {
            name: exported_copy(graph.module, options, doubles_exactly(sides)) for name, graph in reference.items()
        }
        names = _personal(tuned, reference, copies) if options.shared else {}
        _write_graphs(folder / "graphs", reference, copies, names, ranges, options, progress, cancel)
        manifest = describe(tuned, model, options)
        engines = []
        if options.shared:
            manifest = replace(manifest, kind="shared", shared=names)
            (folder / "person" / WEIGHTS).write_bytes(save(pack_weights(copies, names)))
            write_base(folder, plain, names, options.precision)
            engines = [bound(folder, folder / "person" / WEIGHTS, manifest, portable) for portable in (False, True)]
        sample = make_sample(tuned, model, text, manifest)
        parity = check_parity(folder, reference, sample, options.precision, sides, progress, cancel, engines)
        replace(manifest, parity=parity, files=Manifest.entries(folder)).write(folder)
    return out


def make_sample(run: Run, base: Base, text: torch.Tensor, manifest: Manifest) -> Sample:
    """What the comparison takes from a run."""
    return Sample(
        poses=run.poses,
        style=manifest.pose_style,
        latents=run.latents.numpy(),
        text=text.numpy(),
        schedule=base.schedule,
        guidance=manifest.defaults.guidance,
        factor=base.factor,
    )


def _personal(
    run: Run, graphs: Mapping[str, Graph], copies: Mapping[str, nn.Module]
) -> dict[str, dict[str, list[int]]]:
    trained = run.person().tensors
    names = {name: personal_names(graph, copies[name], trained) for name, graph in graphs.items()}
    return {name: own for name, own in names.items() if own}


def _check_target(out: Path, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / NAME).is_file():
        raise ExportError("bundle-exists", f"{out} exists and is not a bundle; choose another --out")
    if not overwrite:
        raise ExportError("bundle-exists", f"{out} is a bundle already; --overwrite replaces it")


def _write_graphs(
    folder: Path,
    reference: dict[str, Graph],
    copies: Mapping[str, nn.Module],
    names: Mapping[str, Mapping[str, list[int]]],
    ranges: Mapping[str, Range],
    options: ExportOptions,
    progress: Progress,
    cancel: Cancel | None,
) -> None:
    done, total = 0, 3 * len(reference) + options.plugins

    def report(what: str) -> None:
        nonlocal done
        if cancel is not None and cancel():
            raise ExportError("cancelled", f"stopped before: {what}; nothing was written")
        progress("export", done, total, what)
        done += 1

    for graph in reference.values():
        graph = replace(graph, module=copies[graph.name])
        report(f"trace {graph.name}")
        program = trace(graph, ranges)
        report(f"translate {graph.name}")
        model = translate(graph, program, names.get(graph.name, ()))
        report(f"write {graph.name}")
        save_graph(model, folder, graph.name, cpu_copy=graph.name != "text_encoder")
        save_layers(graph, folder, names.get(graph.name, ()))
        if options.plugins and graph.name == "denoiser":
            report("translate denoiser with plugins")
            model = translate(graph, program, names.get(graph.name, ()), plugins=True)
            save_variant(model, folder, graph.name, PLUGINS)
    progress("export", total, total)


def exported_copy(module: nn.Module, options: ExportOptions, doubles: bool = False) -> nn.Module:
    """The module as it is traced: temporal matrices folded, nodes placed, in the wanted precision.

    doubles: see `place_nodes`. In fp32 it shares its weights with `module`, but for those that folding changes.
    """
    kept = [] if options.precision == "fp16" else list(module.named_parameters()) + list(module.named_buffers())
    shared = {id(tensor): tensor for name, tensor in kept if ".attn_temp.to_out." not in name}
    made = copy.deepcopy(module, shared).eval()
    for part in made.modules():
        if isinstance(part, VideoUNet):
            part.fold_temporal()
    if options.precision == "fp16":
        made.half()
    place_nodes(made, doubles)
    return made


def write_tokenizer(path: Path, tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> None:
    """One tokenizer.json that pads and cuts to T tokens itself.

    Raises: ExportError "tokenizer" when it splits one of `prompts` otherwise than the base's tokenizer does.
    """
    length = tokenizer.model_max_length
    plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    plain.enable_truncation(length)
    plain.enable_padding(length=length, pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token)
    plain.save(str(path))
    for prompt in prompts:
        expected = tokenizer(prompt, padding="max_length", truncation=True, max_length=length).input_ids
        if Tokenizer.from_file(str(path)).encode(prompt).ids != expected:
            raise ExportError("tokenizer", f"tokenizer.json splits {prompt!r} otherwise than the base's tokenizer does")
