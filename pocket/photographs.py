"""Free photographs as training material: what Debian's wallpaper packages and scikit-image ship, cut into squares.

The packages are fetched with `apt-get download` into a cache folder outside of the repository and unpacked there;
nothing is installed. Licences: see the model card in weights/README.md.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]

PACKAGES = (
    "gnome-backgrounds",
    "mate-backgrounds",
    "plasma-workspace-wallpapers",
    "lomiri-wallpapers-16.04",
    "lomiri-wallpapers-20.04",
)
SAMPLES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "brick.png", "grass.png")
"""Of scikit-image's images, the photographs of things one meets in a video."""
PORTRAIT = "astronaut.png"
LONG_SIDE = 1600
FLAT = 12.0
"""Squares that vary less (sky, plain graphics) get one more try elsewhere in the photograph."""


def fetch(cache: Path) -> None:
    """Unpack the wallpaper packages under cache/debs; those already there are left alone."""
    for package in PACKAGES:
        folder = cache / "debs" / package
        if folder.exists():
            continue
        downloads = cache / "downloads"
        downloads.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", package], cwd=downloads, check=True)
        deb = next(downloads.glob(f"{package}_*.deb"))
        partial = cache / "debs" / f"{package}.part"
        partial.mkdir(parents=True, exist_ok=True)
        subprocess.run(["dpkg-deb", "-x", str(deb), str(partial)], check=True)
        partial.rename(folder)


def paths(cache: Path) -> list[Path]:
    """The picture files, sorted; small duplicates (screenshots, portrait copies for telephones) left out."""
    found = [
        path
        for path in sorted((cache / "debs").rglob("*"))
        if path.suffix in {".jpg", ".png", ".webp"} and path.is_file() and not path.is_symlink()
    ]
    names = {path.name for path in found}
    wallpapers = [
        path
        for path in found
        if path.stem != "screenshot"
        and not (path.stem[0].isdigit() and _portrait(path.stem))
        and not (path.name.startswith("Elephants_") and "Elephants.jpg" in names)
    ]
    return wallpapers + _samples()


def _portrait(stem: str) -> bool:
    width, _, height = stem.partition("x")
    return width.isdigit() and height.isdigit() and int(width) < int(height)


def _samples() -> list[Path]:
    """The chosen images of scikit-image that are on this machine."""
    import skimage.data

    folder = Path(skimage.data.__file__).parent
    return [folder / name for name in SAMPLES if (folder / name).is_file()]


def read(path: Path) -> Image:
    """One photograph as RGB uint8 [H, W, 3], its long side at most LONG_SIDE pixels."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{path} is not a picture that OpenCV reads; remove it from the cache folder")
    scale = LONG_SIDE / max(image.shape[:2])
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def cut(photographs: list[Image], count: int, size: int, seed: int, portrait: Image | None = None) -> Image:
    """`count` squares, uint8 [count, size, size, 3], each from a random place, scale and side of a random photograph.

    Every tenth square is of `portrait` (a picture of a person), when there is one, with varied colours.
    """
    random = np.random.default_rng(seed)
    squares = np.empty((count, size, size, 3), np.uint8)
    for index in range(count):
        photograph = photographs[int(random.integers(len(photographs)))]
        if portrait is not None and index % 10 == 0:
            photograph = portrait
        squares[index] = _square(photograph, size, random)
        if squares[index].std(axis=(0, 1)).max() < FLAT:
            squares[index] = _square(photograph, size, random)
    return squares


def _square(photograph: Image, size: int, random: np.random.Generator) -> Image:
    height, width = photograph.shape[:2]
    largest = min(height, width)
    smallest = min(size, largest)
    side = round(float(np.exp(random.uniform(np.log(smallest), np.log(largest)))))
    top, left = int(random.integers(height - side + 1)), int(random.integers(width - side + 1))
    square = photograph[top : top + side, left : left + side]
    shrink = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
    square = np.asarray(cv2.resize(square, (size, size), interpolation=shrink), np.uint8)
    if random.random() < 0.5:
        square = square[:, ::-1]
    if random.random() < 0.6:
        square = recolour(square, random)
    return square


def recolour(image: Image, random: np.random.Generator) -> Image:
    """The image with another brightness, contrast, saturation and white balance: uint8 [H, W, 3]."""
    colours = image.astype(np.float32)
    grey = colours.mean(axis=2, keepdims=True)
    colours = grey + (colours - grey) * random.uniform(0.3, 1.4)
    colours = (colours - 128) * random.uniform(0.6, 1.25) + 128 + random.uniform(-30, 30)
    colours *= random.uniform(0.88, 1.12, 3).astype(np.float32)
    return np.clip(colours, 0, 255).astype(np.uint8)
