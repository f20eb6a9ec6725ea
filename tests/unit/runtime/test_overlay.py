from pathlib import Path

import matplotlib
import numpy as np
import pytest
from brightness import write_brightness
from PIL import Image, ImageFont
from tile_detector import write_tile_detector

from kdgan_compress.errors import KdganError
from kdgan_compress.runtime import Detector, FileScore, overlay, score_files
from kdgan_compress.runtime.overlay import (
    CONTOUR,
    INFERNO,
    LABEL_ANOMALY,
    LABEL_NORMAL,
    MAX_SIDE,
    MIN_SIDE,
    SUFFIX,
    check_overlay_folder,
    draw_overlay,
    draw_result,
    overlay_paths,
    write_overlay,
)

GREY = np.full((400, 600, 3), 120, np.uint8)


def draw(anomaly_map, threshold=1.0, pixels=GREY, is_anomaly=False):
    """The overlay without its label's corner, as pixels."""
    drawn = np.asarray(draw_overlay(pixels, np.float32(anomaly_map), "1", is_anomaly, threshold)).astype(int)
    drawn[:60, :200] = 120
    return drawn


def spot(value, size=(40, 60)):
    """A map of zeros with a square of this value in its lower right."""
    anomaly_map = np.zeros(size)
    anomaly_map[20:30, 30:45] = value
    return anomaly_map


def test_the_colormap_is_matplotlibs():
    expected = [matplotlib.colormaps["inferno"](step)[:3] for step in np.linspace(0, 1, len(INFERNO))]
    np.testing.assert_allclose(INFERNO / 255, expected, atol=0.003)


@pytest.mark.parametrize("value", [0.0, 0.5, 0.7])
def test_far_below_the_threshold_the_photo_is_unchanged(value):
    assert (draw(np.full((40, 60), value)) == 120).all()


def test_the_colour_grows_with_the_map_and_saturates():
    levels = [0.8, 0.9, 1.0, 1.2, 1.4, 1.5, 3.0]
    brightness = [np.abs(draw(np.full((4, 6), value), 1.0)[300, 400] - 120).sum() for value in levels]
    assert brightness[-1] == brightness[-2]
    assert len(set(brightness[:-1])) == len(brightness) - 1
    red, green, blue = draw(np.full((4, 6), 5.0))[300, 400]
    assert red > 170
    assert green > 170
    assert blue > 120  # the photo stays visible below the strongest colour


@pytest.mark.parametrize("threshold", [1.0, 0.01, 250.0, 1e-30])
def test_colours_are_relative_to_the_threshold(threshold):
    expected = draw(spot(1.3))
    np.testing.assert_allclose(draw(spot(1.3 * threshold), threshold), expected, atol=1)


def test_the_contour_is_where_the_map_exceeds_the_threshold():
    drawn = draw(spot(1.3))
    white = (drawn == CONTOUR).all(axis=2)
    rows, columns = np.nonzero(white)
    # The square is 20 to 30 of 40 rows and 30 to 45 of 60 columns of the map, the photo 10 times as large.
    assert (rows.min(), rows.max()) == (pytest.approx(200, abs=6), pytest.approx(300, abs=6))
    assert (columns.min(), columns.max()) == (pytest.approx(300, abs=6), pytest.approx(450, abs=6))
    assert not white[220:280, 320:430].any()
    assert (drawn[250, columns.min() - 1] == 0).all()  # a black line on each side
    assert (drawn[250, columns.min() + 2] == 0).all()


def test_below_the_threshold_there_is_no_contour():
    assert not (draw(spot(0.99)) == CONTOUR).all(axis=2).any()


def test_a_defect_at_the_edge_has_a_closed_contour():
    drawn = draw(np.full((40, 60), 2.0))
    assert (drawn[100:, 0] == CONTOUR).all()
    assert (drawn[-1] == CONTOUR).all()


def test_a_threshold_that_is_not_positive():
    """The map's distance from the threshold decides: its sign where the contour is, its size the colour."""
    anomaly_map = spot(0.0) - 8.0
    anomaly_map[25, 35] = -2.0
    drawn = draw(np.where(anomaly_map == 0, -8, anomaly_map), -5.0)
    white = (drawn == CONTOUR).all(axis=2)
    assert 0 < white.sum() < 200
    assert np.argwhere(white).mean(0) == pytest.approx([255, 355], abs=3)
    assert not (draw(np.full((4, 4), -5.0), -5.0) == CONTOUR).all(axis=2).any()
    assert (draw(np.full((4, 4), 1.0), 0.0) == CONTOUR).all(axis=2).any()


def test_a_map_in_other_units_has_no_contour():
    drawn = draw(spot(0.5), None)
    assert not (drawn == CONTOUR).all(axis=2).any()
    assert (drawn[250, 370] != 120).any()
    assert (drawn[100, 370] == 120).all()
    assert (draw(np.full((4, 4), 0.05), None) == 120).all()  # noise of a good reconstruction gets no colour


def test_values_that_are_not_numbers():
    anomaly_map = spot(np.inf)
    anomaly_map[0, 0] = np.nan
    drawn = draw(anomaly_map)
    assert (drawn == CONTOUR).all(axis=2).any()
    draw(np.full((3, 3), np.nan))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((400, 600), (400, 600)),
        ((3000, 2000), (MAX_SIDE, MAX_SIDE * 2 // 3)),
        ((28, 14), (MIN_SIDE, MIN_SIDE // 2)),
        ((1, 1), (MIN_SIDE, MIN_SIDE)),
        ((1, 5000), (1, MAX_SIDE)),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_photos_of_every_size(size, expected, channels):
    drawn = draw_overlay(np.zeros((*size, channels), np.uint8), np.ones((7, 5), np.float32), "1.00 normal", False, 0.5)
    assert (drawn.height, drawn.width) == expected
    assert drawn.mode == "RGB"


@pytest.mark.parametrize(("is_anomaly", "colour"), [(True, LABEL_ANOMALY), (False, LABEL_NORMAL)])
def test_the_label(is_anomaly, colour):
    drawn = np.asarray(draw_overlay(GREY, np.zeros((4, 4), np.float32), "1.23 label", is_anomaly, 1.0))
    assert tuple(drawn[1, 1]) == colour
    corner = drawn[:40, :160]
    assert (corner == 255).all(axis=2).any()
    assert (drawn[60:] == 120).all()


def test_the_label_without_freetype(monkeypatch):
    plain = ImageFont.load_default_imagefont()
    monkeypatch.setattr(overlay.features, "check", lambda _: False)
    monkeypatch.setattr(overlay.ImageFont, "load_default", lambda size: plain if size is None else None)
    test_the_label(True, LABEL_ANOMALY)


def photo(folder, name, level):
    path = folder / name
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.new("L", (40, 30), level).save(path)
    return path


def test_a_scored_photo_is_drawn_with_its_relative_score(tmp_path, monkeypatch):
    labels = []
    monkeypatch.setattr(overlay, "draw_overlay", lambda *arguments: labels.append(arguments[2:]))
    paths = [photo(tmp_path, "a.png", 128), photo(tmp_path, "b.png", 188)]
    detector = Detector(write_tile_detector(tmp_path / "t.onnx", np.full((6, 8, 1), 128.0), 40.0))
    for each in score_files(detector, paths, maps=True):
        draw_result(detector, each)
    assert labels == [("0.00 normal", False, 40.0), ("1.50 anomaly", True, 40.0)]
    labels.clear()
    for threshold, unit in ((-1.0, "score"), (40.0, None)):
        path = write_tile_detector(tmp_path / "t.onnx", np.full((6, 8, 1), 128.0), threshold, map_unit=unit)
        detector = Detector(path)
        draw_result(detector, next(score_files(detector, paths[1:], maps=True)))
    assert labels == [("60 (limit -1) anomaly", True, -1.0), ("1.50 anomaly", True, None)]


def test_a_result_without_a_map_is_a_mistake_of_the_caller(tmp_path):
    detector = Detector(write_brightness(tmp_path / "d.onnx"))
    with pytest.raises(AssertionError, match="maps=True"):
        draw_result(detector, FileScore(Path("x"), 1.0, False))


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "a.map.jpg"
    write_overlay(path, Image.new("RGB", (50, 40)))
    with Image.open(path) as image:
        assert (image.format, image.size) == ("JPEG", (50, 40))
    before = path.read_bytes()
    monkeypatch.setattr(Image.Image, "save", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(KdganError, match="No space left"):
        write_overlay(path, Image.new("RGB", (50, 40), "red"))
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["a.map.jpg"]


def relative(paths, folder):
    return [path.relative_to(folder).as_posix() for path in paths]


def test_names_follow_the_photos_below_their_folder(tmp_path):
    root = tmp_path / "photos"
    photos = [root / name for name in ("a.png", "crack/a.png", "crack/deep/b.c.jpeg", "no suffix")]
    found = overlay_paths(Path("maps"), [(path, root) for path in photos])
    names = ["a", "crack/a", "crack/deep/b.c", "no suffix"]
    assert found == [Path("maps", name + SUFFIX) for name in names]


def test_equal_names_are_told_apart(tmp_path):
    pairs = [
        (tmp_path / root / name, tmp_path / root)
        for root in ("x", "y", "z")
        for name in ("a.png", "a.jpg", "A.bmp", "a-2.png")
    ]
    found = overlay_paths(tmp_path / "maps", pairs)
    assert relative(found, tmp_path / "maps")[:4] == ["a.map.jpg", "a-2.map.jpg", "A-3.map.jpg", "a-2-2.map.jpg"]
    assert len({str(path).lower() for path in found}) == len(pairs)
    assert found == overlay_paths(tmp_path / "maps", pairs)


def test_no_overlay_takes_the_path_of_a_photo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos = [Path("a.png"), Path("A.map.jpg"), Path("a-2.map.jpg"), Path("b.map.png")]
    found = overlay_paths(tmp_path, [(path, path.parent) for path in photos])
    assert relative(found, tmp_path) == ["a-3.map.jpg", "A.map.map.jpg", "a-2.map.map.jpg", "b.map.map.jpg"]


def test_many_photos_of_one_name_take_no_long_time(tmp_path):
    pairs = [(tmp_path / str(number) / "a.png", tmp_path / str(number)) for number in range(5000)]
    assert len(set(overlay_paths(tmp_path / "maps", pairs))) == 5000


def test_overlays_do_not_go_where_photos_are_scored(tmp_path, monkeypatch):
    photos = tmp_path / "photos"
    (photos / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(photos)
    monkeypatch.chdir(tmp_path)
    for folder in (photos, photos / "new", photos / "deep" / "..", Path("photos/maps"), tmp_path / "link" / "x"):
        with pytest.raises(KdganError, match="must be outside of the scored folders"):
            check_overlay_folder(folder, [tmp_path / "elsewhere", photos])
    for folder in (tmp_path / "maps", tmp_path / "photos-maps", tmp_path):
        check_overlay_folder(folder, [photos])
