"""Who is painted: the look of one made-up person and the words that describe it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from posecrafter.pocket.paint import Cloth
from posecrafter.pocket.textures import COLOURS, colour, noise, pattern

Image = npt.NDArray[np.uint8]
RGB = tuple[float, float, float]

SKINS: tuple[RGB, ...] = (
    (246, 214, 192), (236, 196, 170), (224, 178, 146), (206, 156, 120), (182, 130, 96), (146, 100, 72),
    (112, 74, 54), (82, 54, 42),
)  # fmt: skip
HAIRS: dict[str, RGB] = {
    "black": (34, 28, 26),
    "dark brown": (62, 42, 32),
    "brown": (104, 70, 44),
    "blond": (196, 160, 100),
    "red": (150, 66, 34),
    "grey": (150, 148, 146),
    "white": (222, 220, 216),
}
STYLES = ("short", "short", "medium", "long", "curly", "bald", "bun")
PATTERNS = ("plain", "plain", "plain", "striped", "checked", "dotted", "printed")
TOPS = ("shirt", "t-shirt", "sweater", "jacket", "suit", "top")
BACKGROUNDS = ("photograph", "photograph", "photograph", "wall", "room", "room", "stage", "car")
TILE = 128


@dataclass(frozen=True)
class Person:
    """A look. Lengths are in head heights; `face` holds the shape factors that faces.py applies."""

    word: str
    skin: Cloth
    hair: Cloth
    hair_name: str
    style: str
    beard: str
    glasses: bool
    hat: Cloth | None
    top: Cloth
    top_name: str
    top_colour: str
    top_pattern: str
    inner: Cloth
    trousers: Cloth
    trousers_colour: str
    skirt: bool
    eyes: RGB
    lips: RGB
    shoulders: float
    hips: float
    girth: float
    legs: float
    face: npt.NDArray[np.float64]
    fringe: float
    volume: float


def random_person(random: np.random.Generator, photograph: Image) -> Person:
    """A person drawn at random. photograph: uint8 [n, n, 3], the print on printed clothes."""
    woman = random.random() < 0.5
    skin = np.array(SKINS[int(random.integers(len(SKINS)))]) + random.normal(0, 6, 3)
    hair_name = str(random.choice(list(HAIRS)))
    style = str(random.choice(STYLES if not woman else ("short", "medium", "long", "long", "curly", "bun")))
    top_colour, top_pattern = str(random.choice(list(COLOURS))), str(random.choice(PATTERNS))
    trousers_colour = str(random.choice(list(COLOURS)))
    hair = np.clip(np.array(HAIRS[hair_name]) + random.normal(0, 8, 3), 5, 245)
    lips = skin * (0.86, 0.62, 0.64) if woman and random.random() < 0.5 else skin * (0.86, 0.7, 0.68)
    grain = noise(TILE, int(random.integers(3, 14)), random)
    strands = noise(TILE, 6 if style == "curly" else 3, random, stretch=1 if style == "curly" else 6)
    return Person(
        word="woman" if woman else "man",
        skin=Cloth(_rgb(skin), grain, float(random.uniform(0.03, 0.12))),
        hair=Cloth(_rgb(hair), strands, float(random.uniform(0.25, 0.6))),
        hair_name=hair_name,
        style=style,
        beard="" if woman else str(random.choice(["", "", "", "beard", "moustache", "stubble"])),
        glasses=bool(random.random() < 0.2),
        hat=_cloth(str(random.choice(list(COLOURS))), "plain", random, photograph) if random.random() < 0.08 else None,
        top=_cloth(top_colour, top_pattern, random, photograph),
        top_name=str(random.choice(TOPS)),
        top_colour=top_colour,
        top_pattern=top_pattern,
        inner=_cloth(str(random.choice(["white", "grey", "light blue", "black"])), "plain", random, photograph),
        trousers=_cloth(trousers_colour, str(random.choice(("plain", "plain", "checked"))), random, photograph),
        trousers_colour=trousers_colour,
        skirt=bool(woman and random.random() < 0.4),
        eyes=_rgb(np.array([[70, 45, 30], [90, 60, 35], [80, 110, 150], [90, 120, 80]])[int(random.integers(4))]),
        lips=_rgb(lips),
        shoulders=float(random.uniform(0.72, 0.9) if woman else random.uniform(0.84, 1.05)),
        hips=float(random.uniform(0.42, 0.58)),
        girth=float(random.uniform(0.85, 1.3)),
        legs=float(random.uniform(0.9, 1.1)),
        face=random.uniform(-1, 1, 8),
        fringe=float(random.uniform(0, 1)),
        volume=float(random.uniform(1.02, 1.16) + (0.12 if style == "curly" else 0)),
    )


def caption(person: Person, background: str, background_colour: str, full_body: bool) -> str:
    """One English sentence about what can be seen."""
    hair = "no hair" if person.style == "bald" else f"{person.style} {person.hair_name} hair"
    if person.style == "bun":
        hair = f"{person.hair_name} hair in a bun"
    parts = [f"a {person.word} with {hair}"]
    if person.beard:
        parts[0] += " and stubble" if person.beard == "stubble" else f" and a {person.beard}"
    wears = [
        f"a {person.top_colour}{'' if person.top_pattern == 'plain' else ' ' + person.top_pattern} {person.top_name}"
    ]
    if full_body:
        wears.append(
            f"{'a' if person.skirt else ''} {person.trousers_colour} {'skirt' if person.skirt else 'trousers'}"
        )
    if person.glasses:
        wears.append("glasses")
    if person.hat is not None:
        wears.append("a hat")
    parts.append("wearing " + " and ".join(word.strip() for word in wears))
    places = {"photograph": "outdoors", "wall": f"in front of a {background_colour} wall", "room": "in a room"}
    parts.append(places.get(background, "on a stage" if background == "stage" else "in a car"))
    return ", ".join(parts)


def _cloth(name: str, kind: str, random: np.random.Generator, photograph: Image) -> Cloth:
    return Cloth(colour(name, random), pattern(kind, TILE, random, photograph), float(random.uniform(0.3, 0.6)))


def _rgb(values: npt.NDArray[np.float64]) -> RGB:
    red, green, blue = np.clip(values, 0, 255)
    return float(red), float(green), float(blue)
