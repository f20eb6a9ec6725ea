"""Losses of feature distillation written from the papers with plain loops, as oracles for ``kdgan_compress.losses``.

Each takes NumPy arrays and returns the loss of a whole batch.
"""

import itertools
import math

import numpy as np


def attention(student, teacher, order):
    """Zagoruyko & Komodakis 2017, Eq. 2, averaged over the batch.

    ``order`` "norm": the L2 norm as in the paper. "mean": the mean of squares as in the authors' code.
    """
    total = 0.0
    for pair in zip(student, teacher, strict=True):
        maps = []
        for channels in pair:
            _, height, width = channels.shape
            positions = itertools.product(range(height), range(width))
            energies = [sum(channel[position] ** 2 for channel in channels) for position in positions]
            length = math.sqrt(sum(energy**2 for energy in energies))
            maps.append([energy / length for energy in energies])
        squares = [(a - b) ** 2 for a, b in zip(*maps, strict=True)]
        total += math.sqrt(sum(squares)) if order == "norm" else sum(squares) / len(squares)
    return total / len(student)


def fsp_matrix(first, second):
    """Yim et al. 2017, Eq. 1, of one image; the larger map is max-pooled in equal blocks."""
    size = min(first.shape[1], second.shape[1])
    first, second = (_max_pool(maps, maps.shape[1] // size) for maps in (first, second))
    positions = list(itertools.product(range(size), repeat=2))
    return np.array([[sum(a[p] * b[p] for p in positions) / size**2 for b in second] for a in first])


def fsp(student_first, student_second, teacher_first, teacher_second):
    """Yim et al. 2017, Eq. 2, with λ = 1."""
    images = zip(student_first, student_second, teacher_first, teacher_second, strict=True)
    return np.mean([((fsp_matrix(a, b) - fsp_matrix(c, d)) ** 2).sum() for a, b, c, d in images])


def rkd_distance(student, teacher):
    """Park et al. 2019, distance-wise: the sum over pairs of different images, divided by B²."""
    relations = []
    for features in (student, teacher):
        rows = features.reshape(len(features), -1)
        pairs = list(itertools.permutations(range(len(rows)), 2))
        distances = [math.dist(rows[i], rows[j]) for i, j in pairs]
        mean = sum(distances) / len(distances)
        relations.append([distance / mean for distance in distances])
    return sum(map(_huber, *relations)) / len(student) ** 2


def rkd_angle(student, teacher):
    """Park et al. 2019, angle-wise: the sum over triplets of different images, divided by B³."""
    total = 0.0
    for i, j, k in itertools.permutations(range(len(student)), 3):
        cosines = []
        for features in (student, teacher):
            rows = features.reshape(len(features), -1)
            a, b = rows[i] - rows[j], rows[k] - rows[j]
            cosines.append(float(a @ b) / math.sqrt(float(a @ a) * float(b @ b)))
        total += _huber(*cosines)
    return total / len(student) ** 3


def similarity_preserving(student, teacher):
    """Tung & Mori 2019: ‖G_S − G_T‖² / B²."""
    matrices = []
    for features in (student, teacher):
        rows = features.reshape(len(features), -1)
        products = [[float(a @ b) for b in rows] for a in rows]
        matrices.append([[value / math.sqrt(sum(v**2 for v in row)) for value in row] for row in products])
    differences = (a - b for rows in zip(*matrices, strict=True) for a, b in zip(*rows, strict=True))
    return sum(difference**2 for difference in differences) / len(student) ** 2


def _huber(a, b):
    difference = abs(a - b)
    return difference**2 / 2 if difference <= 1 else difference - 0.5


def _max_pool(maps, factor):
    channels, height, width = maps.shape
    return maps.reshape(channels, height // factor, factor, width // factor, factor).max((2, 4))
