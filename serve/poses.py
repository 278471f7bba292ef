"""Poses to render: those of somebody's training video, or anybody's in his proportions; edited, if wanted."""

from __future__ import annotations

from collections.abc import Sequence

from posecrafter.errors import RequestError
from posecrafter.pose import PoseTrack, read_poses
from posecrafter.pose.recipe import edit, parse_step
from posecrafter.pose.retarget import retarget
from posecrafter.runtime.bundle import Bundle
from posecrafter.runtime.person import find_pack


def training_poses(bundle: Bundle, person: str | None) -> PoseTrack:
    """Of the bundle's own person, or of one of a shared bundle's. Raises: BundleError "pack-missing", PoseError."""
    if person is None or bundle.folder is None:
        return bundle.poses
    return read_poses(find_pack(bundle.folder, person) / "poses.json")


def make_poses(
    person: PoseTrack, driver: PoseTrack | None, transfer: bool, operations: Sequence[str], most: int
) -> PoseTrack:
    """The driver's poses, or the person's own; the driver's as the person is built, where `transfer` says so; edited by
    operations as `poses edit --do` takes them, without files. most: frames that there may be.

    Raises: PoseError "edit-syntax", "edit-value", "edit-range", "no-person", "no-common-key-points"; RequestError
    "frames-limit".
    """
    steps = [parse_step(operation, "do", folder=None) for operation in operations]
    track = person if driver is None else retarget(driver, person)[0] if transfer else driver
    for step in steps:
        track = edit(track, [step])
        if len(track) > most:
            raise RequestError("frames-limit", f"{len(track)} frames are more than {most}; ask for fewer")
    return track
