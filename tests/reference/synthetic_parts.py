"""Drawn photos of a part, good and defective, with masks, for tests and for the pictures of docs/photos.md.

``python tests/reference/synthetic_parts.py FOLDER`` writes a folder in MVTec's layout.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIDE, SCALE = 256, 2
METAL, SHADOW, BELT = (168, 172, 178), (92, 96, 104), (58, 66, 60)
DEFECTS = ("scratch", "chip", "stain")


def draw_part(rng: np.random.Generator, defect: str | None = None) -> tuple[Image.Image, Image.Image]:
    """A slotted flange on a belt, 256×256 pixels, and the mask of its defect."""
    side = SIDE * SCALE
    centre = side / 2 + rng.uniform(-3, 3, size=2) * SCALE
    light, noise = rng.uniform(0.93, 1.07), rng.normal(0, 3, size=(SIDE, SIDE, 3))
    photo, mask = Image.new("RGB", (side, side), BELT), Image.new("L", (side, side))
    draw = ImageDraw.Draw(photo)
    _disc(draw, centre + 6, 0.40 * side, (38, 44, 40))
    _disc(draw, centre, 0.40 * side, METAL)
    _disc(draw, centre, 0.37 * side, SHADOW)
    _disc(draw, centre, 0.36 * side, METAL)
    _disc(draw, centre, 0.17 * side, SHADOW)
    _disc(draw, centre, 0.15 * side, (36, 40, 40))
    for angle in np.arange(6) * np.pi / 3:
        _disc(draw, centre + 0.265 * side * np.array([np.cos(angle), np.sin(angle)]), 0.035 * side, (44, 48, 50))
    if defect is not None:
        _add_defect(photo, mask, centre, defect, rng)
    photo = photo.filter(ImageFilter.GaussianBlur(1.2)).resize((SIDE, SIDE), Image.Resampling.BOX)
    pixels = np.asarray(photo, dtype=np.float64) * light + noise
    reduced = mask.resize((SIDE, SIDE), Image.Resampling.BOX).point(lambda value: 255 if value > 64 else 0)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), reduced


def write_parts(folder: Path, num_train: int = 120, num_good: int = 20, num_defective: int = 10, seed: int = 0) -> None:
    """Write photos in MVTec's layout, with masks in ``ground_truth``."""
    rng = np.random.default_rng(seed)
    for kind, number in (("train/good", num_train), ("test/good", num_good)):
        for index in range(number):
            _save(draw_part(rng)[0], folder / kind / f"{index:03}.png")
    for defect in DEFECTS:
        for index in range(num_defective):
            photo, mask = draw_part(rng, defect)
            _save(photo, folder / "test" / defect / f"{index:03}.png")
            _save(mask, folder / "ground_truth" / defect / f"{index:03}_mask.png")


def _add_defect(
    photo: Image.Image, mask: Image.Image, centre: np.ndarray, defect: str, rng: np.random.Generator
) -> None:
    side, angle = photo.width, rng.uniform(0, 2 * np.pi)
    place = centre + rng.uniform(0.2, 0.33) * side * np.array([np.cos(angle), np.sin(angle)])
    for image, colours in ((photo, ((225, 228, 232), BELT, (120, 92, 60))), (mask, (255, 255, 255))):
        draw = ImageDraw.Draw(image)
        colour = colours[DEFECTS.index(defect)]
        if defect == "scratch":
            along = 0.06 * side * np.array([np.cos(angle + 1), np.sin(angle + 1)])
            draw.line([tuple(place - along), tuple(place + along)], fill=colour, width=3 * SCALE)
        elif defect == "chip":
            _disc(draw, centre + 0.4 * side * np.array([np.cos(angle), np.sin(angle)]), 0.035 * side, colour)
        else:
            _disc(draw, place, 0.04 * side, colour)


def _disc(draw: ImageDraw.ImageDraw, centre: np.ndarray, radius: float, colour: object) -> None:
    draw.ellipse([*(centre - radius), *(centre + radius)], fill=colour)  # type: ignore[arg-type]


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


if __name__ == "__main__":
    write_parts(Path(sys.argv[1]))
