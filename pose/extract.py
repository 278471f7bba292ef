"""Poses out of a video, by an estimator that runs in its own environment as a subprocess.

The video is decoded here, one frame at a time, and its frames are sent as raw pixels: what the estimator sees is what
training sees. Each answer is kept as it comes, so a stopped extraction can go on.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from posecrafter.errors import PoseError
from posecrafter.pose.environment import extractor_python
from posecrafter.pose.estimators import BLAZEPOSE, PEOPLE, Estimator
from posecrafter.pose.kept import Answers, Kept
from posecrafter.pose.openpose import parse_frames
from posecrafter.pose.people import check_choice, choose, find_people, hide_others, spine_of
from posecrafter.pose.track import PoseTrack
from posecrafter.progress import Progress, silent

if TYPE_CHECKING:
    from posecrafter.video import Clip

STAGE = "poses"
PEOPLE_STAGE = "people"

Frame = npt.NDArray[np.uint8]


def extract_poses(
    video_path: Path | str,
    progress: Progress | None = None,
    first: int | None = None,
    last: int | None = None,
    allow_missing: bool = False,
    person: str | None = None,
    estimator: Estimator | None = None,
    kept: Kept | None = None,
) -> PoseTrack:
    """Key points of the person in frames `first`..`last` (both included, from 0; default all) of a video.

    person: "largest" or a number from the left (see people.choose) follows one of several through the clip; None is for
    clips of one person: the one whom mediapipe follows, DWPose's largest. kept: where answers are kept, and those that
    are there already. Canvas and rate are the video's. Frames without a visible person are refused by name, or, with
    allow_missing, kept with score 0. Raises VideoError (see read_video); PoseError no-person, person-index,
    extractor-missing, extractor-failed; RequestError person-syntax.
    """
    from posecrafter.video import open_clip  # the video library is a fifth of the runtime's time to import

    check_choice(person)
    estimator = estimator or BLAZEPOSE
    python = extractor_python(environment=estimator.environment)
    clip = open_clip(video_path, first, last)
    kept, progress, name = kept or Kept(), progress or silent, str(video_path)
    if estimator.everybody:
        answers = kept.stage("everybody")
        _answer(python, estimator, STAGE, clip, answers, progress)
        objects = _one_of_all(answers, person or "largest", name)
    else:
        others = None if person is None else _others_hidden(python, clip, person, kept, progress, name)
        answers = kept.stage(f"person {person}")
        _answer(python, estimator, STAGE, clip, answers, progress, others)
        objects = map(json.loads, answers)
    track = replace(parse_frames(name, objects), fps=clip.fps)
    check_persons(track, name, clip.first, allow_missing)
    return track


def check_persons(track: PoseTrack, name: str, first: int, allow_missing: bool) -> None:
    """Raises PoseError no-person: frames without a person that are not allowed, numbered from `first`."""
    missing = np.flatnonzero(~track.persons)
    if len(missing) == len(track) or (len(missing) and not allow_missing):
        where = name_ranges([int(index) + first for index in missing])
        cure = "" if len(missing) == len(track) else ", or keep them as empty frames with --allow-missing"
        raise PoseError(
            "no-person",
            f"{name}: no person is visible in frame{'s' if len(missing) > 1 else ''} {where} "
            f"({len(missing)} of {len(track)}); choose other frames with --first and --last{cure}",
        )


def _answer(
    python: Path,
    estimator: Estimator,
    stage: str,
    clip: Clip,
    answers: Answers,
    progress: Progress,
    altered: Callable[[int, Frame], Frame] | None = None,
) -> None:
    """Bring the answers up to the clip's last frame. altered: (number, frame) -> what the estimator sees."""
    done, count = len(answers), len(clip)
    if done >= count:
        progress(stage, count, count, "found before")
        return
    # An estimator that follows a person is shown the frames before, as in an uninterrupted run, and not listened to.
    start = max(0, done - estimator.memory)
    header: dict[str, Any] = {"frames": count - start, "width": clip.width, "height": clip.height}
    header |= {kind: str(path.resolve()) for kind, path in estimator.models.items()}
    progress(stage, done, count, f"going on at frame {clip.first + done}" if done else "start")
    with closing(clip.frames(start)) as frames:
        shown = enumerate(frames, start) if altered is None else _altered(frames, start, altered)
        with closing(run_extractor(python, estimator.script, header, shown)) as found:
            for index, answer in found:
                if index >= done:
                    answers.add(answer)
                    progress(stage, index + 1, count)


def _altered(
    frames: Iterable[Frame], start: int, altered: Callable[[int, Frame], Frame]
) -> Iterator[tuple[int, Frame]]:
    return ((index, altered(index, frame)) for index, frame in enumerate(frames, start))


def _others_hidden(
    python: Path, clip: Clip, person: str, kept: Kept, progress: Progress, name: str
) -> Callable[[int, Frame], Frame]:
    """(number, frame) -> the frame with everybody but the chosen person hidden, once all of them are known."""
    answers = kept.stage(PEOPLE_STAGE)
    _answer(python, PEOPLE, PEOPLE_STAGE, clip, answers, progress)
    sightings = [json.loads(answer)["people"] for answer in answers]
    boxes = [np.array([one["box"] for one in seen], np.float64).reshape(-1, 4) for seen in sightings]
    hips = [np.array([one["hips"] for one in seen], np.float64).reshape(-1, 2) for seen in sightings]
    spines = [np.stack([(box[:, :2] + box[:, 2:]) / 2, hip], 1) for box, hip in zip(boxes, hips, strict=True)]
    looks = [np.array([one["look"] for one in seen], np.float64).reshape(len(seen), -1) for seen in sightings]
    people = find_people(boxes, looks)
    chosen = choose(people, person, name)
    progress(PEOPLE_STAGE, len(clip), len(clip), f"person {chosen} of {len(people)}, counted from the left, from 0")
    ways = [spine_of(one, spines) for one in people]

    def hidden(index: int, frame: Frame) -> Frame:
        others = [way[index] for number, way in enumerate(ways) if number != chosen]
        return hide_others(frame, ways[chosen][index], np.array([spine for spine in others if spine is not None]))

    return hidden


def _one_of_all(answers: Sequence[bytes], person: str, name: str) -> Iterator[Any]:
    """OpenPose frame objects with the chosen person alone, out of answers that hold everybody."""
    boxes = [np.array(json.loads(answer)["boxes"], np.float64).reshape(-1, 4) for answer in answers]
    people = find_people(boxes)
    chosen = people[choose(people, person, name)]
    place = dict(zip(chosen.frames.tolist(), chosen.found.tolist(), strict=True))
    for index, answer in enumerate(answers):
        item = json.loads(answer)
        yield item | {"people": [item["people"][place[index]]] if index in place else []}


def run_extractor(
    python: Path, script: Path, header: dict[str, Any], frames: Iterable[tuple[int, Frame]]
) -> Generator[tuple[int, bytes], None, None]:
    """Send numbered uint8 frames [H, W, 3] RGB to the script one by one; gives each one's number and answer, JSON.

    Raises PoseError extractor-failed with the script's last words if it stops early or answers with anything else.
    """
    with tempfile.TemporaryFile() as log, _child([str(python), "-I", str(script)], log) as (send, receive):
        index = 0
        try:
            send.write(json.dumps(header).encode() + b"\n")
            for index, frame in frames:
                send.write(np.ascontiguousarray(frame).data)
                send.flush()
                answer = receive.readline()
                json.loads(answer)
                yield index, answer
        except (BrokenPipeError, json.JSONDecodeError) as error:
            raise PoseError(
                "extractor-failed",
                f"the pose extractor stopped at frame {index} of the clip ({_last_words(log)}); "
                "if it is broken, delete its folder and run: posecrafter poses setup",
            ) from error


@contextmanager
def _child(command: list[str], log: IO[bytes]) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """A subprocess with pipes to and from it, in its own session: Ctrl-C comes to us, and we end it."""
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True)
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        yield child.stdin, child.stdout
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
        # What was still buffered has no reader any more.
        with suppress(BrokenPipeError):
            child.stdin.close()


def _last_words(log: IO[bytes]) -> str:
    log.seek(0)
    lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def name_ranges(numbers: Sequence[int]) -> str:
    """Sorted frame numbers in words: [0, 1, 2, 7] -> "0-2, 7"."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ", ".join(str(start) if start == end else f"{start}-{end}" for start, end in ranges)
