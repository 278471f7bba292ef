"""The sizes that an engine is built for: from the manifest's ranges, or the few that were asked for."""

from __future__ import annotations

from collections.abc import Sequence

from posecrafter.errors import ExportError
from posecrafter.manifest import Manifest, Range
from posecrafter.runtime.engines.built import Profile

GUIDED = 2
"""Prompts of a guided step."""

CHUNK = 8
"""Frames that the decoder gets at once unless a request says otherwise."""

LIKELY = 17
"""Frames of a likely pass: 16 and the reference."""


def make_profiles(
    manifest: Manifest, graph: str, frames: Sequence[int] = (), size: tuple[int, int] | None = None
) -> tuple[Profile, ...]:
    """Profiles of one graph. Height and width are those of `size` or the bundle's, in pixels: a pass has no other.

    frames: frames of the passes to build for, the reference included; each gets a profile of its own. Without them one
    profile takes the manifest's whole range. A pass of one frame and one prompt, the inversion's, always has its own.
    Raises: ExportError "compile-range".
    """
    for count in frames:
        if count not in manifest.frames:
            cure = f"; export again with --max-frames {count}" if count > manifest.frames.max else ""
            raise ExportError("compile-range", f"{_outside('--frames', count, manifest.frames)}{cure}")
    width, height = size or (manifest.defaults.width, manifest.defaults.height)
    for name, value, allowed in (("width", width, manifest.width), ("height", height, manifest.height)):
        if value not in allowed:
            option = "--size" if size else "the bundle's own size"
            cure = "; export it again" if not size and value > allowed.max else ""
            raise ExportError("compile-range", f"{_outside(option, value, allowed)}, the {name}{cure}")
    if graph == "text_encoder":
        return (Profile({"prompts": _span(manifest.prompts, 1, GUIDED)}),)
    if graph == "vae_decoder":
        counts = [_span(manifest.frames, CHUNK, 2 * CHUNK)]
    elif frames:
        counts = [(count, count, count) for count in sorted({1, *frames})]
    else:
        counts = [(1, 1, 1), _span(manifest.frames, LIKELY, manifest.frames.max)]
    if graph == "pose_encoder":
        place = {"height": (height,) * 3, "width": (width,) * 3}
    else:
        factor = manifest.latents.factor
        place = {"h": (height // factor,) * 3, "w": (width // factor,) * 3}
    profiles = [{"frames": count, **place} for count in counts]
    if graph == "denoiser":
        both = _span(manifest.prompts, GUIDED, GUIDED)
        alone = both if 1 in frames else (1, 1, 1)
        profiles = [{**p, "prompts": alone if p["frames"] == (1, 1, 1) else both} for p in profiles]
    return tuple(Profile(profile) for profile in profiles)


def _span(allowed: Range, likely: int, most: int) -> tuple[int, int, int]:
    high = min(most, allowed.max)
    return allowed.min, min(likely, high), high


def _outside(option: str, value: int, allowed: Range) -> str:
    steps = f" in steps of {allowed.multiple}" if allowed.multiple > 1 else ""
    return f"{option} {value} is outside the bundle's {allowed.min}..{allowed.max}{steps}"
