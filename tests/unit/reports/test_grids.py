import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from kdgan_compress.reports import ImageRow, plot_rows


def levels(*values, channels=1):
    """Flat 8×8 images of these levels."""
    return torch.tensor(values).reshape(-1, 1, 1, 1).expand(-1, channels, 8, 8).clone()


def pixels_of(path):
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(int)


def tiles(pixels):
    """Grey levels and lengths of the runs of 20 and more equal pixels along a line through the row, but white."""
    line = pixels[int(len(pixels) * 0.6)]
    starts = [0, *np.flatnonzero((line[1:] != line[:-1]).any(1)) + 1, len(line)]
    runs = itertools.pairwise(starts)
    return [(int(line[a][0]), int(b - a)) for a, b in runs if b - a >= 20 and line[a].min() < 255]


def test_tiles_are_the_images_in_order(tmp_path):
    plot_rows([ImageRow("row", [levels(0.0), levels(0.2, 0.4, 0.6)])], ["one", "three"], tmp_path / "rows.png")
    levels_found, widths = zip(*tiles(pixels_of(tmp_path / "rows.png")), strict=True)
    assert levels_found == pytest.approx((0, 51, 102, 153), abs=1)
    assert max(widths) <= 1.1 * min(widths)


def test_values_beyond_the_range_are_cut_and_colour_is_kept(tmp_path, caplog):
    red = levels(-3.0, channels=3)
    red[:, 0] = 3.0
    plot_rows([ImageRow("row", [red, levels(-3.0, channels=3)])], ["a", "b"], tmp_path / "rows.png")
    pixels = pixels_of(tmp_path / "rows.png").reshape(-1, 3)
    assert (pixels == (255, 0, 0)).all(1).sum() > 400
    assert ((pixels == (255, 0, 0)) | (pixels[:, :1] == pixels)).all()  # else grey: black tile, text, white
    assert caplog.text == ""  # matplotlib would cut them too, and complain


def test_the_picture_grows_with_rows_and_tiles(tmp_path):
    def size(num_rows, num_tiles):
        plot_rows(
            [ImageRow("r", [levels(0.5).repeat(num_tiles, 1, 1, 1)])] * num_rows, ["t"], tmp_path / "new" / "rows.png"
        )
        return pixels_of(tmp_path / "new" / "rows.png").shape[:2]

    small, tall, wide = size(1, 8), size(5, 8), size(1, 20)
    assert tall[0] > small[0] + 4 * 60
    assert wide[1] > small[1] + 12 * 60
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["rows.png"]


@pytest.mark.parametrize("titles", [[], ["a", "b"]])
def test_one_title_per_group(tmp_path, titles):
    with pytest.raises(ValueError, match="zip"):
        plot_rows([ImageRow("row", [levels(0.5)])], titles, tmp_path / "rows.png")
    assert list(tmp_path.iterdir()) == []
