"""Where a model of tiles finds the defects of its test photos: pixel metrics, heat maps and a picture of cases."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdgan_compress.data import Split
from kdgan_compress.data.masks import read_mask
from kdgan_compress.errors import KdganError
from kdgan_compress.evaluation import PixelMetrics, map_photos, pixel_metrics
from kdgan_compress.experiment.checkpoint import Checkpoint
from kdgan_compress.reports import ScoredPhotos, plot_cases
from kdgan_compress.runtime import Detector
from kdgan_compress.runtime.overlay import draw_overlay, overlay_paths, result_label, write_overlay
from kdgan_compress.scores import FittedScorer

CASES_FILE = "cases.png"


@dataclass(frozen=True, eq=False)
class PhotoMaps:
    """Anomaly maps (N, H, W) of a test split's photos, in units of the score, and the masks that the photos have."""

    values: NDArray[np.float32]
    masks: list[NDArray[np.bool_] | None]


def map_split(model: Checkpoint | Detector, split: Split) -> PhotoMaps | None:
    """Map the photos of a test split; None if the model has no tiles or, if it is a detector, no map.

    Raises:
        KdganError: A mask can't be read or has another shape than its photo.
    """
    if isinstance(model, Detector):
        if model.map_unit is None:
            return None
        photos = split.test.permute(0, 2, 3, 1).numpy()
        found = [model.score(photo[None], maps=True).anomaly_map for photo in photos]
        values = np.concatenate([each for each in found if each is not None])
    else:
        scorer = model.scorer()
        if not isinstance(scorer, FittedScorer) or scorer.grid is None:
            return None
        values = map_photos(scorer, split.test)
    masks = [
        None if mask is None else read_mask(mask, values.shape[1:], photo)
        for mask, photo in zip(split.test_masks, split.test_paths, strict=True)
    ] or [None] * len(values)
    return PhotoMaps(values, masks)


def measure_maps(maps: PhotoMaps | None, split: Split) -> PixelMetrics | None:
    """Pixel metrics of maps; None without maps or masks."""
    return None if maps is None else pixel_metrics(maps.values, maps.masks, split.test_is_anomalous)


def write_maps(
    folder: str | Path, maps: PhotoMaps | None, split: Split, scores: NDArray[np.float64], threshold: float
) -> Path:
    """Draw each test photo with its map, and the best and worst cases in ``cases.png``; return the folder.

    Raises:
        KdganError: There are no maps, or the folder is not writable.
    """
    if maps is None:
        hint = "Train it on a folder of photos larger than 64 pixels, or export it with --anomaly-map"
        raise KdganError("Maps need a model of tiles", "this one scores whole images", hint)
    folder = Path(folder)
    classes = [str(name) for name in split.test_classes]
    names = [path.name for path in split.test_paths] or [f"{index:05}" for index in range(len(scores))]
    files = [Path(each, name) for each, name in zip(classes, names, strict=True)]
    for index, path in enumerate(overlay_paths(folder, [(file, Path()) for file in files])):
        score, is_anomaly = float(scores[index]), bool(scores[index] > threshold)
        label = result_label(score, score / threshold if threshold > 0 else None, threshold, is_anomaly)
        pixels = split.test[index].permute(1, 2, 0).numpy()
        write_overlay(path, draw_overlay(pixels, maps.values[index], label, is_anomaly, threshold))
    scored = ScoredPhotos(split.test, maps.values, maps.masks, scores, split.test_is_anomalous, classes)
    plot_cases(scored, threshold, folder / CASES_FILE, map_threshold=threshold)
    return folder
