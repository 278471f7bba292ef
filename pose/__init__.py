"""Key points in, control images out: tracks, OpenPose JSON, drawing, extraction from video."""

from posecrafter.pose.draw import STYLES, draw_frame, draw_poses
from posecrafter.pose.environment import setup_extractor
from posecrafter.pose.extract import extract_poses
from posecrafter.pose.openpose import parse_frames, read_poses, to_frames, write_poses
from posecrafter.pose.track import BODY, FACE, KEY_POINTS, LEFT_HAND, RIGHT_HAND, VISIBLE, PoseTrack

__all__ = [
    "BODY",
    "FACE",
    "KEY_POINTS",
    "LEFT_HAND",
    "RIGHT_HAND",
    "STYLES",
    "VISIBLE",
    "PoseTrack",
    "draw_frame",
    "draw_poses",
    "extract_poses",
    "parse_frames",
    "read_poses",
    "setup_extractor",
    "to_frames",
    "write_poses",
]
