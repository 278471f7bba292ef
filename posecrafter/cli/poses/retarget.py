"""posecrafter poses retarget: somebody's poses on the body of the person that a bundle, or a pose file, shows."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from posecrafter.cli.poses.options import AsJson, Canvas, OutJson, Poses, check_json_name, read, report
from posecrafter.errors import PoseError

if TYPE_CHECKING:
    from posecrafter.pose import PoseTrack
    from posecrafter.pose.retarget import Transfer


def retarget_command(
    target: Poses,
    to: Annotated[
        Path, typer.Option("--to", help="The person: a bundle, a tuning run, or poses of its training video.")
    ],
    out: OutJson,
    keep: Annotated[
        str, typer.Option("--keep", help="Proportions to leave the driver's: head,face,trunk,arms,hands,legs.")
    ] = "",
    keep_framing: Annotated[
        bool, typer.Option("--keep-framing", help="Leave the driver's size and place in the picture too.")
    ] = False,
    canvas: Canvas = None,
    as_json: AsJson = False,
) -> None:
    """Give poses the proportions and the framing of another person; the driver's angles and motion stay."""
    from posecrafter.pose import write_poses
    from posecrafter.pose.retarget import retarget

    check_json_name(out)
    parts = tuple(part.strip() for part in keep.split(",") if part.strip())
    track, transfer = retarget(read(target, canvas), _person(to), parts, keep_framing)
    write_poses(out, track)
    values = {"poses": str(out), "frames": len(track), "width": track.width, "height": track.height}
    report({**values, **asdict(transfer)}, f"{out}: {len(track)} poses, {_words(transfer)}", as_json)


def _person(path: Path) -> PoseTrack:
    """The training poses of a bundle (their hash checked), of a run, or of a pose file or folder."""
    from posecrafter.manifest import NAME, Manifest
    from posecrafter.pose import read_poses

    if (path / NAME).is_file():
        Manifest.read(path).verify(path, "person/poses.json")
        return read_poses(path / "person" / "poses.json")
    if (path / "run.json").is_file():
        return read_poses(path / "poses.json")
    if not path.exists():
        raise PoseError("poses-missing", f"there is no bundle, run or pose file {path}; --to names the person")
    return read_poses(path)


def _words(transfer: Transfer) -> str:
    if transfer.same:
        return "left as they are: no difference in build or framing beyond the error of measurement"
    changed = [f"{bone.replace('_', ' ')} x{factor:.2f}" for bone, factor in transfer.bones.items() if factor != 1]
    place = f"scaled x{transfer.scale:.2f}, {transfer.anchor.replace('_', ' ')} moved by "
    place += f"({transfer.shift[0]:+.0f}, {transfer.shift[1]:+.0f}) px"
    face = "features of the face changed" if transfer.face else "features kept"
    return "; ".join([place, ", ".join(changed) or "proportions kept", face])
