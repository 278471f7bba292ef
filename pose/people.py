"""Several people in a clip: who is who from frame to frame, whom to follow, and hiding the others.

People are told apart by where they are and how large, not by how they look. Somebody who is out of sight for longer
than LOST frames, or leaves, counts as another person when he comes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from posecrafter.errors import PoseError, RequestError

# A second at 25 frames/s: long enough for somebody to pass in front.
LOST = 25
# Farther than this, in box sides from where he was heading, or more than twice as large, is somebody else.
REACH = 1.0
# Seen in less than a tenth of the frames that the clip's most seen person is in: a passer-by or a false alarm.
BRIEF = 0.1

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Person:
    """One person of a clip. frames: where he is seen, increasing; found: his place among each one's boxes."""

    frames: Ints
    found: Ints
    boxes: Floats

    @property
    def area(self) -> float:
        """Summed over the frames, pixels squared: large, and there for long."""
        return float(((self.boxes[:, 2] - self.boxes[:, 0]) * (self.boxes[:, 3] - self.boxes[:, 1])).sum())

    @property
    def x(self) -> float:
        """Where he is on average, in pixels from the left."""
        return float((self.boxes[:, 0] + self.boxes[:, 2]).mean() / 2)


class _Trail:
    """A person so far: what is needed to know him in the next frame."""

    def __init__(self) -> None:
        self.frames: list[int] = []
        self.found: list[int] = []
        self.boxes: list[Floats] = []
        self.velocity = np.zeros(2)

    def add(self, frame: int, index: int, box: Floats) -> None:
        if self.frames:
            step = (_centre(box) - _centre(self.boxes[-1])) / (frame - self.frames[-1])
            # Half old, half new: a detector's boxes tremble.
            self.velocity = (self.velocity + step) / 2
        self.frames.append(frame)
        self.found.append(index)
        self.boxes.append(box)

    def cost(self, frame: int, box: Floats) -> float:
        """How unlike him a box is: distance from where he was heading in box sides, and the ratio of the sizes."""
        away = frame - self.frames[-1]
        last = self.boxes[-1]
        side, other = _side(last), _side(box)
        # Nobody keeps his pace unseen for long.
        expected = _centre(last) + self.velocity * min(away, 5)
        distance = float(np.linalg.norm(_centre(box) - expected)) / max(side, other)
        return distance + abs(float(np.log2(other / side)))


def find_people(boxes: Sequence[Floats]) -> list[Person]:
    """Who is who. boxes: for each frame [n, 4] left, top, right, bottom of everybody seen, pixels.

    People from left to right as they are on average; brief appearances are left out.
    """
    trails: list[_Trail] = []
    for frame, seen in enumerate(boxes):
        active = [trail for trail in trails if frame - trail.frames[-1] <= LOST]
        costs = [
            (trail.cost(frame, box), number, index)
            for number, trail in enumerate(active)
            for index, box in enumerate(seen)
        ]
        taken: dict[int, int] = {}
        for cost, number, index in sorted(costs):
            if cost <= REACH and number not in taken.values() and index not in taken:
                taken[index] = number
        for index, box in enumerate(seen):
            if index in taken:
                active[taken[index]].add(frame, index, box)
            else:
                trails.append(_Trail())
                trails[-1].add(frame, index, box)
    most = max((len(trail.frames) for trail in trails), default=0)
    people = [
        Person(np.array(trail.frames), np.array(trail.found), np.array(trail.boxes))
        for trail in trails
        if len(trail.frames) >= BRIEF * most
    ]
    return sorted(people, key=lambda person: person.x)


def check_choice(person: str | None) -> None:
    """Raises RequestError person-syntax: neither "largest" nor a number."""
    if person is not None and person != "largest" and not (person.isascii() and person.isdecimal()):
        raise RequestError(
            "person-syntax", f"--person {person} is neither 'largest' nor a number from 0, from the left"
        )


def choose(people: Sequence[Person], person: str, name: str) -> int:
    """The number of the person asked for: "largest" (over the whole clip) or a number from the left, from 0.

    Raises RequestError person-syntax; PoseError no-person (nobody at all), person-index (fewer people than that).
    """
    if not people:
        raise PoseError("no-person", f"{name}: no person is visible in any frame")
    check_choice(person)
    if person == "largest":
        return max(range(len(people)), key=lambda number: people[number].area)
    if int(person) >= len(people):
        listed = "; ".join(
            f"{number}: around x = {one.x:.0f}, frames {one.frames[0]}-{one.frames[-1]}"
            for number, one in enumerate(people)
        )
        raise PoseError("person-index", f"{name} shows {len(people)} people and no number {person} ({listed})")
    return int(person)


def spine_of(person: Person, spines: Sequence[Floats]) -> list[Floats | None]:
    """The person's head and hips [2, 2] in every frame of the clip; None where he is away for longer than LOST frames.

    spines: for each frame [n, 2, 2] those of everybody seen. Short gaps are bridged in a straight line.
    """
    found = np.array([spines[frame][index] for frame, index in zip(person.frames, person.found, strict=True)])
    bridged: list[Floats | None] = []
    for frame in range(len(spines)):
        after = int(np.searchsorted(person.frames, frame))
        if after < len(person.frames) and person.frames[after] == frame:
            bridged.append(found[after])
        elif 0 < after < len(person.frames) and person.frames[after] - person.frames[after - 1] <= LOST:
            share = (frame - person.frames[after - 1]) / (person.frames[after] - person.frames[after - 1])
            bridged.append(found[after - 1] * (1 - share) + found[after] * share)
        else:
            bridged.append(None)
    return bridged


def hide_others(frame: npt.NDArray[np.uint8], own: Floats | None, others: Floats) -> npt.NDArray[np.uint8]:
    """The frame with everything black that is nearer to somebody else's spine, in his size, than to the person's own.

    frame: uint8 [H, W, 3]; own: [2, 2] head and hips, None: he is not there and all is black; others: [n, 2, 2].
    A frame without others comes back as it is.
    """
    if own is None:
        return np.zeros_like(frame)
    if not len(others):
        return frame
    height, width = frame.shape[:2]
    y, x = np.mgrid[:height, :width] + 0.5
    distance = _distance(x, y, own)
    nearer = np.zeros((height, width), bool)
    for other in others:
        nearer |= _distance(x, y, other) < distance
    shown = frame.copy()
    shown[nearer] = 0
    return shown


def _distance(x: Floats, y: Floats, spine: Floats) -> Floats:
    """From each pixel to the line from head to hips, in lengths of that line."""
    head, along = spine[0], spine[1] - spine[0]
    length = max(float(np.hypot(*along)), 1.0)
    dx, dy = x - head[0], y - head[1]
    share = np.clip((dx * along[0] + dy * along[1]) / length**2, 0, 1)
    return np.asarray(np.hypot(dx - share * along[0], dy - share * along[1]) / length)


def _centre(box: Floats) -> Floats:
    return (box[:2] + box[2:]) / 2


def _side(box: Floats) -> float:
    return max(float(np.sqrt(np.prod(np.maximum(box[2:] - box[:2], 1.0)))), 1.0)
