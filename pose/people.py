"""Several people in a clip: who is who from frame to frame, whom to follow, and hiding the others.

People are told apart by where they are, how large, and, where that is known, by the colours they wear. Somebody who is
out of sight for longer than LOST frames, or leaves, counts as another person when he comes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from posecrafter.errors import PoseError, RequestError

# Two seconds at 25 frames/s: long enough for somebody to walk past in front.
LOST = 50
# Unseen for as many frames, nobody keeps his pace; whoever is seen then is first looked for among those seen since.
BRIEFLY = 5
# Farther than this, in box sides from where he was heading, or more than twice as large, is somebody else.
REACH = 1.0
# What wholly other colours count for, in box sides of distance, where a box may be one person's or another's.
LOOKS = 4.0
# What one sighting adds to how somebody is known to look.
NEW_LOOK = 0.1
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
        self.look: Floats = np.zeros(0)

    def add(self, frame: int, index: int, box: Floats, look: Floats) -> None:
        self.look = (1 - NEW_LOOK) * self.look + NEW_LOOK * look if self.frames else look
        if self.frames:
            step = (_centre(box) - _centre(self.boxes[-1])) / (frame - self.frames[-1])
            # Mostly the old one: a detector's boxes tremble.
            self.velocity = 0.8 * self.velocity + 0.2 * step if len(self.frames) > 1 else step / 2
        self.frames.append(frame)
        self.found.append(index)
        self.boxes.append(box)

    def away(self, frame: int, box: Floats) -> float:
        """How far from him a box is: distance from where he was heading in box sides, and the ratio of the sizes."""
        unseen = frame - self.frames[-1]
        last = self.boxes[-1]
        side, other = _side(last), _side(box)
        expected = _centre(last) + self.velocity * min(unseen, BRIEFLY)
        distance = float(np.linalg.norm(_centre(box) - expected)) / max(side, other)
        # Where somebody is after a while is known less well.
        return distance / (1 + unseen / LOST) + abs(float(np.log2(other / side)))

    def unlike(self, look: Floats) -> float:
        """How little of the colours is the same, from 0 to 1 (Hellinger's distance); 0 where they are not known."""
        if not (self.look.any() and look.any()):
            return 0.0
        alike = float(self.look @ look) / float(np.linalg.norm(self.look) * np.linalg.norm(look))
        return float(np.sqrt(max(1 - alike, 0)))


def find_people(boxes: Sequence[Floats], looks: Sequence[Floats] | None = None) -> list[Person]:
    """Who is who. boxes: for each frame [n, 4] left, top, right, bottom of everybody seen, pixels. looks: for each
    frame [n, k] the roots of the shares of k colours, zeros or None where they are not known.

    A box goes to who was seen just before, if it can be his, and else to who has been out of sight: where one walks
    past another, only the one in front is seen, and he must not be taken for the other when both are.

    People from left to right as they are on average; brief appearances are left out.
    """
    trails: list[_Trail] = []
    looks = [np.zeros((len(seen), 0)) for seen in boxes] if looks is None else looks
    for frame, (seen, worn) in enumerate(zip(boxes, looks, strict=True)):
        active = [trail for trail in trails if frame - trail.frames[-1] <= LOST]
        fits = [
            (frame - trail.frames[-1] > BRIEFLY, away + LOOKS * trail.unlike(worn[index]), number, index)
            for number, trail in enumerate(active)
            for index, box in enumerate(seen)
            if (away := trail.away(frame, box)) <= REACH
        ]
        taken: dict[int, int] = {}
        for _, _, number, index in sorted(fits):
            if number not in taken.values() and index not in taken:
                taken[index] = number
        for index, box in enumerate(seen):
            if index in taken:
                active[taken[index]].add(frame, index, box, worn[index])
            else:
                trails.append(_Trail())
                trails[-1].add(frame, index, box, worn[index])
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
