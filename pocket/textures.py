"""Textures and backgrounds, made from a random generator and from squares of photographs."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]

COLOURS: dict[str, tuple[int, int, int]] = {
    "black": (30, 30, 34),
    "white": (228, 228, 224),
    "grey": (128, 128, 130),
    "red": (178, 40, 42),
    "dark red": (104, 28, 38),
    "orange": (214, 118, 44),
    "yellow": (222, 194, 72),
    "green": (62, 128, 66),
    "dark green": (34, 72, 48),
    "blue": (52, 88, 172),
    "dark blue": (30, 40, 84),
    "light blue": (138, 176, 214),
    "purple": (112, 62, 140),
    "pink": (214, 142, 162),
    "brown": (112, 76, 50),
    "beige": (204, 184, 150),
}


def colour(name: str, random: np.random.Generator) -> tuple[float, float, float]:
    """A shade of a named colour, RGB 0..255."""
    red, green, blue = np.clip(np.array(COLOURS[name]) + random.normal(0, 14, 3) + random.normal(0, 14), 4, 250)
    return float(red), float(green), float(blue)


def noise(size: int, grain: int, random: np.random.Generator, stretch: int = 1) -> Image:
    """Smooth grey noise around 128, uint8 [size, size, 3]; `grain` pixels a blob, `stretch` times longer than wide."""
    cells = max(2, size // grain)
    small = random.normal(0, 1, (max(2, cells // stretch), cells)).astype(np.float32)
    grey = cv2.resize(small, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.repeat(np.clip(128 + 60 * grey, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def pattern(kind: str, size: int, random: np.random.Generator, photograph: Image) -> Image:
    """A cloth's texture, uint8 [size, size, 3] around 128: plain, striped, checked, dotted or printed."""
    x, y = np.meshgrid(np.arange(size), np.arange(size))
    period = int(2 ** random.integers(3, 6))
    if kind == "striped":
        wave = np.sign(np.sin(2 * np.pi * (x if random.random() < 0.4 else y) / period))
        tile = np.repeat(wave[..., None], 3, axis=2) * random.uniform(40, 120, 3)
    elif kind == "checked":
        across = np.sign(np.sin(2 * np.pi * x / period))[..., None] * random.uniform(20, 70, 3)
        tile = across + np.sign(np.sin(2 * np.pi * y / period))[..., None] * random.uniform(20, 70, 3)
    elif kind == "dotted":
        inside = ((x % period - period / 2) ** 2 + (y % period - period / 2) ** 2) < (period / 4) ** 2
        tile = inside[..., None] * random.uniform(-100, 120, 3)
    elif kind == "printed":
        big = cv2.resize(photograph, (size, size)).astype(np.float32)
        tile = (big - big.mean(axis=(0, 1))) * 1.4
    else:
        tile = np.zeros((size, size, 3))
    folds = noise(size, int(random.integers(20, 60)), random, stretch=2).astype(np.float32) - 128
    weave = noise(size, 2, random).astype(np.float32) - 128
    return np.clip(128 + tile + 0.35 * folds + 0.12 * weave, 0, 255).astype(np.uint8)


def background(kind: str, name: str, size: int, random: np.random.Generator, photograph: Image) -> Image:
    """A picture to stand in front of, uint8 [size, size, 3]: photograph, wall, room, stage or car."""
    if kind == "photograph":
        picture = cv2.resize(photograph, (size, size), interpolation=cv2.INTER_CUBIC)
        blur = random.choice([0, 0, 1, 2, 5]) * size / 256
        return np.asarray(cv2.GaussianBlur(picture, (0, 0), blur) if blur else picture, np.uint8)
    base = np.array(colour(name, random), np.float32)
    x, y = np.meshgrid(np.linspace(-1, 1, size, dtype=np.float32), np.linspace(-1, 1, size, dtype=np.float32))
    slope = random.normal(0, 0.2, 2)
    shade = 1 + slope[0] * x + slope[1] * y - random.uniform(0, 0.25) * (x**2 + y**2)
    picture = base * shade[..., None]
    picture += (noise(size, int(2 ** random.integers(1, 7)), random).astype(np.float32) - 128) * random.uniform(0, 0.3)
    if kind == "room":
        _furniture(picture, random, int(random.integers(3, 12)))
    elif kind == "stage":
        picture *= (0.25 + 1.2 * np.exp(-((x - random.normal(0, 0.4)) ** 2) * 4))[..., None]
        _floor(picture, random)
    elif kind == "car":
        _car(picture, random, photograph)
    return np.clip(picture, 0, 255).astype(np.uint8)


def _floor(picture: npt.NDArray[np.float32], random: np.random.Generator) -> None:
    size = len(picture)
    top = int(size * random.uniform(0.6, 0.9))
    picture[top:] = picture[top:] * 0.4 + np.array(colour(str(random.choice(list(COLOURS))), random)) * 0.5


def _furniture(picture: npt.NDArray[np.float32], random: np.random.Generator, count: int) -> None:
    """A floor, and boxes of all colours: shelves, pictures, windows."""
    size = len(picture)
    if random.random() < 0.5:
        _floor(picture, random)
    for _ in range(count):
        left, top = random.uniform(-0.2, 1, 2) * size
        width, height = np.exp(random.uniform(np.log(0.03), np.log(0.5), 2)) * size
        corners = np.array([[left, top], [left + width, top], [left + width, top + height], [left, top + height]])
        corners += random.normal(0, size * 0.01, (4, 2))
        shade = colour(str(random.choice(list(COLOURS))), random)
        cv2.fillPoly(picture, [corners.astype(np.int32)], shade, cv2.LINE_AA)
        if random.random() < 0.4:
            edge = tuple(0.6 * value for value in shade)
            cv2.polylines(picture, [corners.astype(np.int32)], True, edge, int(random.integers(1, 4)), cv2.LINE_AA)


def _car(picture: npt.NDArray[np.float32], random: np.random.Generator, photograph: Image) -> None:
    """The inside of a car: side windows with a blurred outside, pillars, a head rest."""
    size = len(picture)
    outside = cv2.resize(photograph, (size, size)).astype(np.float32)
    outside = cv2.blur(outside, (1 + 2 * int(random.integers(0, 14)), 3)) * random.uniform(0.9, 1.5) + 20
    mask = np.zeros((size, size), np.uint8)
    middle = random.uniform(0.25, 0.75)
    sill = random.uniform(0.35, 0.8)
    for start, end in ((-0.1, middle - 0.05), (middle + 0.05, 1.1)):
        lean = random.uniform(-0.1, 0.1)
        corners = np.array([[start + lean, random.uniform(0, 0.15)], [end + lean, random.uniform(0, 0.15)]])
        corners = np.concatenate([corners, [[end, sill], [start, sill + random.normal(0, 0.05)]]]) * size
        cv2.fillPoly(mask, [corners.astype(np.int32)], 255, cv2.LINE_AA)
    share = mask.astype(np.float32)[..., None] / 255
    picture += (outside - picture) * share
    rest = (int(size * middle), int(size * random.uniform(0.4, 0.6)))
    shade = tuple(value * random.uniform(0.4, 1.2) for value in colour("grey", random))
    cv2.ellipse(picture, rest, (int(size * 0.22), int(size * 0.18)), 0, 0, 360, shade, -1, cv2.LINE_AA)
