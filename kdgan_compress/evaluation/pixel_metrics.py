"""How well anomaly maps show where the defects are: pixel AUROC and AUPRO against masks.

Both are areas under a curve over the false-positive rate of normal pixels, so both are sums over defect pixels: a pixel
is found once the rate has risen to the fraction of normal pixels with higher values. Ties count as on the curves of
scikit-learn and MVTec: a straight line from before the tie to after it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from kdgan_compress.errors import KdganError

MAX_FPR = 0.3
"""The false-positive rate up to which MVTec AD's paper integrates the per-region overlap."""

EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=int)
"""Pixels that touch at a corner belong to one region, as in MVTec's evaluation code."""

Map = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class PixelMetrics:
    """How well anomaly maps separate the pixels of defects from all others.

    Attributes:
        pixel_auc: Area under the ROC curve of all pixels, in [0, 1].
        aupro: Area under the per-region overlap curve up to a false-positive rate of 0.3, in [0, 1].
        num_masks: Number of photos with a mask.
        num_without_mask: Number of anomalous photos that were left out, as their mask is missing or empty.
    """

    pixel_auc: float
    aupro: float
    num_masks: int
    num_without_mask: int


def pixel_metrics(
    maps: Sequence[Map] | Map, masks: Sequence[Mask | None], is_anomalous: NDArray[np.bool_]
) -> PixelMetrics | None:
    """Pixel metrics of a labelled test split; None if no photo has a mask, or a mask covers every pixel of all photos.

    Args:
        maps: One map (H, W) per photo, higher is more anomalous, or all as (N, H, W).
        masks: One mask (H, W) per photo, True where the defect is, or None. Pixels of normal photos are normal
            whatever their mask is.
        is_anomalous: The photos' labels (N,). Anomalous photos without a mask are left out.

    Raises:
        KdganError: A map holds NaN or infinity, or a mask has another size than its map.
    """
    _check_same_number(maps, masks, is_anomalous)
    has_mask = np.array([mask is not None and bool(np.any(mask)) for mask in masks], dtype=bool)
    used: list[int] = np.flatnonzero(has_mask | ~is_anomalous).tolist()
    used_maps = [maps[index] for index in used]
    used_masks = [masks[index] if is_anomalous[index] else None for index in used]
    normal, defect, weights = _split_pixels(used_maps, used_masks)
    if len(normal) == 0 or len(defect) == 0:
        return None
    return PixelMetrics(
        pixel_auc=_area(normal, defect, None, max_fpr=1.0),
        aupro=_area(normal, defect, weights, MAX_FPR),
        num_masks=int((has_mask & is_anomalous).sum()),
        num_without_mask=int((~has_mask & is_anomalous).sum()),
    )


def pixel_auroc(maps: Sequence[Map] | Map, masks: Sequence[Mask] | Mask) -> float:
    """Area under the ROC curve of all pixels, in [0, 1]; equals ``sklearn.metrics.roc_auc_score`` of the pixels.

    Args:
        maps: One map (H, W) per photo, higher is more anomalous, or all as (N, H, W).
        masks: Their masks, True where the defect is; all False for a normal photo.

    Raises:
        KdganError: No pixel is normal or none is anomalous, a map holds NaN or infinity, or sizes differ.

    Example:
        >>> pixel_auroc(np.array([[[0.1, 0.9, 0.4, 0.2]]]), np.array([[[False, True, True, False]]]))
        1.0
    """
    normal, defect, _ = _split_pixels(maps, masks)
    _check_both_kinds(normal, defect)
    return _area(normal, defect, None, max_fpr=1.0)


def aupro(maps: Sequence[Map] | Map, masks: Sequence[Mask] | Mask, max_fpr: float = MAX_FPR) -> float:
    """Area under the per-region overlap (PRO) curve up to a false-positive rate, divided by that rate, in [0, 1].

    At each threshold the PRO is the fraction of a defect's pixels that lie above it, averaged over all defects: small
    defects count as much as large ones. A defect is an 8-connected region of a mask (``scipy.ndimage.label`` with a
    3×3 structure), and at ``max_fpr`` the curve is interpolated linearly, both as in MVTec's evaluation code.
    Bergmann et al., The MVTec Anomaly Detection Dataset, IJCV 2021, section 5.2.

    Args:
        maps: One map (H, W) per photo, higher is more anomalous, or all as (N, H, W).
        masks: Their masks, True where the defect is; all False for a normal photo.
        max_fpr: Upper limit of the integral, in (0, 1].

    Raises:
        KdganError: See ``pixel_auroc``; also for a limit outside (0, 1].

    Example:
        >>> aupro(np.array([[[0.1, 0.9, 0.4, 0.2]]]), np.array([[[False, True, True, False]]]))
        1.0
    """
    if not 0 < max_fpr <= 1:
        raise KdganError("max_fpr is out of range", f"got {max_fpr:g}", "Choose a rate above 0 and up to 1")
    normal, defect, weights = _split_pixels(maps, masks)
    _check_both_kinds(normal, defect)
    return _area(normal, defect, weights, max_fpr)


def _split_pixels(
    maps: Sequence[Map] | Map, masks: Sequence[Mask | None] | Mask
) -> tuple[Map, Map, NDArray[np.float64]]:
    """Values of normal pixels, sorted; values of defect pixels, and their weights, which sum to 1.

    Each region has the same weight, shared by its pixels.
    """
    normal: list[Map] = []
    defect: list[Map] = [np.empty(0, dtype=np.float32)]
    weights = [np.empty(0)]
    for values, mask in _checked(maps, masks):
        if mask is None:
            normal.append(values.ravel())
            continue
        regions, _ = ndimage.label(mask, EIGHT_NEIGHBOURS)
        normal.append(values[~mask])
        defect.append(values[mask])
        weights.append(1 / np.bincount(regions.ravel())[regions[mask]])
    normal_values = np.concatenate(normal) if normal else np.empty(0)
    normal_values.sort()
    weight = np.concatenate(weights)
    return normal_values, np.concatenate(defect), weight / max(weight.sum(), 1)


def _checked(
    maps: Sequence[Map] | Map, masks: Sequence[Mask | None] | Mask
) -> Iterator[tuple[Map, NDArray[np.bool_] | None]]:
    """Each map with its mask, None for an empty one."""
    _check_same_number(maps, masks)
    for index, (values, mask) in enumerate(zip(maps, masks, strict=True)):
        if mask is not None and mask.shape != values.shape:
            found = f"photo {index} has {mask.shape} and {values.shape}"
            raise KdganError("A mask differs from its map in size", found, "Bring the mask to the map's size")
        if not np.isfinite(values).all():
            raise KdganError(
                "Anomaly maps must be finite", f"photo {index} has NaN or infinity", "Train with a lower learning rate"
            )
        yield values, None if mask is None or not mask.any() else mask.astype(bool)


def _check_same_number(*values: Sequence[object] | NDArray[Any]) -> None:
    numbers = [len(each) for each in values]
    if len(set(numbers)) > 1:
        hint = "Give one mask per map, all False for a normal photo"
        raise KdganError("Maps, masks and labels differ in number", f"got {' and '.join(map(str, numbers))}", hint)


def _check_both_kinds(normal: Map, defect: Map) -> None:
    if len(normal) == 0 or len(defect) == 0:
        found = f"found {len(normal)} normal and {len(defect)} anomalous pixels"
        raise KdganError("Pixel metrics need normal and anomalous pixels", found, "Add photos with masks of defects")


def _area(normal: Map, defect: Map, weights: NDArray[np.float64] | None, max_fpr: float) -> float:
    """Area, divided by ``max_fpr``, under the weighted fraction of defect pixels found over the false-positive rate.

    A defect pixel is found while the rate rises from the fraction of normal pixels above its value (``start``) to that
    fraction with its ties (``end``), linearly in between.
    """
    order = np.argsort(defect)  # sorted look-ups stay in the processor's cache
    values = defect[order]
    start, end = (
        (len(normal) - np.searchsorted(normal, values, side=side)) / len(normal) for side in ("right", "left")
    )
    tie = end - start
    ramp = np.clip(max_fpr - start, 0, tie)
    slope = np.divide(1, tie, out=np.zeros_like(tie), where=tie > 0)
    areas = np.clip(max_fpr - end, 0, None) + slope * ramp**2 / 2
    area = areas.mean() if weights is None else areas @ weights[order]
    return min(float(area / max_fpr), 1.0)  # above 1 by rounding only
