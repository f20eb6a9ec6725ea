"""Pixel AUROC and AUPRO by plain loops over thresholds, as their definitions read; slow, for small maps."""

import itertools


def roc_area(maps, masks):
    """Area under the ROC curve of all pixels."""
    pixels = [
        (value, is_defect) for map_, mask in zip(maps, masks, strict=True) for value, is_defect in cells(map_, mask)
    ]
    normal = [value for value, is_defect in pixels if not is_defect]
    defect = [value for value, is_defect in pixels if is_defect]
    points = [(fraction(normal, t), fraction(defect, t)) for t in thresholds(maps)]
    return area_up_to(points, 1.0)


def pro_area(maps, masks, max_fpr=0.3):
    """Area under the per-region overlap curve up to a false-positive rate, divided by that rate."""
    normal, regions = [], []
    for map_, mask in zip(maps, masks, strict=True):
        normal += [value for value, is_defect in cells(map_, mask) if not is_defect]
        regions += [[float(map_[row][column]) for row, column in region] for region in connected_regions(mask)]
    points = []
    for t in thresholds(maps):
        overlaps = [fraction(region, t) for region in regions]
        points.append((fraction(normal, t), sum(overlaps) / len(overlaps)))
    return area_up_to(points, max_fpr) / max_fpr


def connected_regions(mask):
    """Pixels of each region, as lists of (row, column); pixels that touch at an edge or a corner belong together."""
    height, width = len(mask), len(mask[0])
    seen, regions = set(), []
    for start in [(row, column) for row in range(height) for column in range(width) if mask[row][column]]:
        if start in seen:
            continue
        seen.add(start)
        region = [start]
        for row, column in region:  # grows while it is read
            for neighbour in [(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]:
                inside = 0 <= neighbour[0] < height and 0 <= neighbour[1] < width
                if inside and mask[neighbour[0]][neighbour[1]] and neighbour not in seen:
                    seen.add(neighbour)
                    region.append(neighbour)
        regions.append(region)
    return regions


def cells(map_, mask):
    return [
        (float(v), bool(m))
        for values, flags in zip(map_, mask, strict=True)
        for v, m in zip(values, flags, strict=True)
    ]


def thresholds(maps):
    """Every value, highest first, after one above all."""
    values = {float(value) for map_ in maps for row in map_ for value in row}
    return [max(values) + 1, *sorted(values, reverse=True)]


def fraction(values, threshold):
    """Fraction of the values at or above the threshold."""
    return sum(value >= threshold for value in values) / len(values)


def area_up_to(points, end):
    """Area under the straight lines between points (x, y) with rising x, from x = 0 to ``end``."""
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 >= end:
            break
        if x1 > end:
            x1, y1 = end, y0 + (y1 - y0) * (end - x0) / (x1 - x0)
        area += (x1 - x0) * (y0 + y1) / 2
    return area
