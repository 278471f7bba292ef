from __future__ import annotations

import io
import struct
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from posecrafter.errors import VideoError
from posecrafter.video import VideoEncoder, open_clip, read_video, write_video


def moving_ramp(frames: int, height: int = 48, width: int = 64) -> np.ndarray:
    ramp = np.linspace(0, 200, width)[None, :, None] + np.arange(frames)[:, None, None, None] * 3
    return np.broadcast_to(ramp, (frames, height, width, 3)).astype(np.uint8)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    write_video(tmp_path / "clip.mp4", moving_ramp(12), fps=25)
    return tmp_path / "clip.mp4"


@pytest.mark.parametrize("frames", [1, 3, 17])
def test_a_written_video_reads_back_with_its_frames_and_rate(frames: int, tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", moving_ramp(frames), fps=29.97)
    video = read_video(tmp_path / "v.mp4")
    assert video.frames.shape == (frames, 48, 64, 3)
    assert video.fps == pytest.approx(29.97, abs=0.01)
    assert np.abs(video.frames.astype(int) - moving_ramp(frames)).mean() < 3


def test_a_sink_gets_a_video_that_plays_while_it_grows() -> None:
    class Sink(list[bytes]):
        def write(self, part: bytes, /) -> int:
            self.append(bytes(part))
            return len(part)

    sink, frames = Sink(), moving_ramp(12)
    with VideoEncoder(sink, 25) as encoder:
        for count, frame in enumerate(frames):
            encoder.write(frame)
            if count:  # each is there once the next one is
                with av.open(io.BytesIO(b"".join(sink))) as so_far:
                    assert sum(1 for _ in so_far.decode(video=0)) == count
    with av.open(io.BytesIO(b"".join(sink))) as whole:
        pictures = [picture.to_ndarray(format="rgb24") for picture in whole.decode(video=0)]
        assert whole.streams.video[0].average_rate == 25
    assert np.abs(np.stack(pictures).astype(int) - frames).mean() < 3


def test_a_range_of_frames_has_both_ends(clip: Path) -> None:
    part = read_video(clip, first=2, last=4)
    np.testing.assert_array_equal(part.frames, read_video(clip).frames[2:5])


def test_a_clip_gives_the_same_frames_one_at_a_time_from_any_of_them_on(clip: Path) -> None:
    whole, part = read_video(clip), open_clip(clip, first=2, last=4)
    assert (len(part), part.width, part.height, part.fps) == (3, 64, 48, 25)
    np.testing.assert_array_equal(np.stack(list(part.frames())), whole.frames[2:5])
    np.testing.assert_array_equal(np.stack(list(part.frames(start=1))), whole.frames[3:5])
    assert len(open_clip(clip)) == 12


@pytest.mark.parametrize(("matrix", "turns"), [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)])
def test_a_video_that_a_phone_marked_as_turned_is_read_upright(
    clip: Path, tmp_path: Path, matrix: tuple[int, ...], turns: int
) -> None:
    a, b, c, d = (value << 16 for value in matrix)
    stored = bytearray(clip.read_bytes())
    place = stored.index(b"tkhd") + 44  # the track's display matrix (ISO/IEC 14496-12, 8.3.2)
    stored[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(stored)
    shown = np.rot90(read_video(clip).frames, turns, axes=(1, 2))
    np.testing.assert_array_equal(read_video(tmp_path / "turned.mp4").frames, shown)
    opened = open_clip(tmp_path / "turned.mp4")
    assert (opened.height, opened.width) == shown.shape[1:3]
    np.testing.assert_array_equal(next(opened.frames()), shown[0])


def refuse(path: Path, code: str, **options: int) -> str:
    with pytest.raises(VideoError) as caught:
        read_video(path, **options)
    assert caught.value.code == code
    assert "\n" not in caught.value.message
    return caught.value.message


def test_a_missing_video_is_named(tmp_path: Path) -> None:
    assert "nothing.mp4" in refuse(tmp_path / "nothing.mp4", "video-missing")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    refuse(tmp_path / "empty.mp4", "video-empty")


def test_text_is_not_a_video(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("hello " * 100)
    refuse(tmp_path / "text.mp4", "video-unreadable")


def test_a_truncated_video_is_refused_or_unreadable(clip: Path, tmp_path: Path) -> None:
    data = clip.read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(data[: len(data) // 2])  # the index at the end is gone
    with pytest.raises(VideoError) as caught:
        read_video(cut)
    assert caught.value.code in ("video-unreadable", "video-truncated")


def test_a_video_that_breaks_off_in_its_frames_is_truncated(tmp_path: Path) -> None:
    path = tmp_path / "fast.mp4"
    write_noise(path, 12, 25, options={"movflags": "faststart"})
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * 0.6)])
    message = refuse(path, "video-truncated")
    assert "12 frames" in message or "breaks off" in message


@pytest.mark.parametrize(("suffix", "codec"), [("mkv", "libx264"), ("webm", "libvpx")])
def test_a_video_that_counts_no_frames_and_ends_too_early_is_truncated(tmp_path: Path, suffix: str, codec: str) -> None:
    path = tmp_path / f"noise.{suffix}"
    write_noise(path, 50, 25, codec)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * 0.6)])
    assert "announces 2.0 seconds" in refuse(path, "video-truncated")


@pytest.mark.parametrize("count", [1, 2, 30])
@pytest.mark.parametrize("rate", [1, 25])
def test_a_whole_video_that_counts_no_frames_is_read(tmp_path: Path, count: int, rate: int) -> None:
    write_noise(tmp_path / "noise.mkv", count, rate)
    assert len(read_video(tmp_path / "noise.mkv")) == count


def write_noise(
    path: Path, count: int, rate: int, codec: str = "libx264", options: dict[str, str] | None = None
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (count, 48, 64, 3)).astype(np.uint8)
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for image in noise:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def test_frames_of_changing_size_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mixed.mjpeg"
    images = [moving_ramp(1, height)[0] for height in (48, 48, 32)]
    path.write_bytes(b"".join(cv2.imencode(".jpg", image)[1].tobytes() for image in images))
    message = refuse(path, "video-size-changes")
    assert "64x32" in message
    assert "64x48" in message


def test_a_range_outside_the_video_names_what_there_is(clip: Path) -> None:
    assert "0..11" in refuse(clip, "video-range", first=3, last=12)
    refuse(clip, "video-range", first=5, last=4)
    refuse(clip, "video-range", first=-1, last=4)
    with pytest.raises(VideoError, match=r"0\.\.11") as caught:
        open_clip(clip, first=12)
    assert caught.value.code == "video-range"


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    assert "no video stream" in refuse(tmp_path / "sound.mp4", "video-empty")


@pytest.mark.parametrize("size", [(47, 64), (48, 63)])
def test_an_odd_size_cannot_be_written(size: tuple[int, int], tmp_path: Path) -> None:
    with pytest.raises(VideoError) as caught:
        write_video(tmp_path / "odd.mp4", moving_ramp(2, *size), fps=25)
    assert caught.value.code == "video-odd-size"
    assert list(tmp_path.iterdir()) == []
