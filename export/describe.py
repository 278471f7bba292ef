"""A bundle's manifest, as far as it is known before any file is written."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import PurePath

from posecrafter.export.graphs import make_ranges
from posecrafter.export.options import ExportOptions
from posecrafter.export.run import Run
from posecrafter.finetune.base import Base
from posecrafter.manifest import Defaults, Latents, Manifest, Text


def describe(run: Run, base: Base, options: ExportOptions) -> Manifest:
    """Sizes, ranges, defaults and where it all came from; no local path."""
    ranges, record = make_ranges(base, options), run.record
    defaults = base.defaults
    return Manifest(
        precision=options.precision,
        width=ranges["width"],
        height=ranges["height"],
        frames=ranges["frames"],
        prompts=ranges["prompts"],
        latents=Latents(base.latent_channels, base.factor, base.scaling_factor),
        text=Text(base.tokenizer.model_max_length, base.denoiser.unet.size.text_width, record["prompt"]),
        schedule=base.schedule,
        defaults=Defaults(
            width=record["width"],
            height=record["height"],
            steps=defaults.steps if options.steps is None else options.steps,
            guidance=defaults.guidance,
            control_scale=defaults.control_scale,
            inversion_iterations=defaults.inversion_iterations,
            keep_mean=defaults.keep_mean,
            sampling_steps=defaults.sampling_steps if options.steps is None else 0,
        ),
        pose_style=record["pose_style"],
        fps=record["fps"],
        training_frames=len(run.latents),
        network_width=base.denoiser.unet.size.widths[0],
        provenance={
            "base": PurePath(record["base"]["source"]).name,
            "base_sha256": record["base"]["sha256"],
            "training_steps": record["steps"],
            **{name: version(name) for name in ("posecrafter", "torch", "onnx", "onnxscript", "onnxruntime")},
        },
    )
