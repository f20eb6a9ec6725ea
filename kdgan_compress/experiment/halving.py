"""Successive halving with a constraint: which candidates a short training lets through to the full one.

Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization", 2016. Their rule ranks
by the loss alone. Here the smallest candidate within an allowed drop of AUC is wanted. After a short training all may
be far below the teacher; then drops are measured from the best candidate of the round.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

MIN_SURVIVORS = 2


@dataclass(frozen=True)
class Scored:
    """One file of a candidate after a round: the candidate's name, AUC in [0, 1] and bytes."""

    name: str
    auc: float
    size_bytes: int


def survivors(
    candidates: Sequence[Scored], fraction: float, max_auc_drop: float | None, teacher_auc: float
) -> list[str]:
    """Names of the candidates that go on: a fraction of them, at least two, the most promising first.

    With an allowed drop these are, in turns, the smallest of those within it and the still smaller ones that miss it by
    least, since the full training can lift them. Without one they are those of the highest AUC. Equal ones are ordered
    by bytes, and the best file of a candidate counts.

    Args:
        candidates: At least one; several files may have one name.
        fraction: In (0, 1].
        max_auc_drop: Allowed drop, ≥ 0; None for the highest AUC.
        teacher_auc: The teacher's AUC on the same images.
    """
    number = max(MIN_SURVIVORS, math.ceil(fraction * len({each.name for each in candidates})))
    by_auc = sorted(candidates, key=lambda each: (-each.auc, each.size_bytes, each.name))
    if max_auc_drop is None:
        return list(dict.fromkeys(each.name for each in by_auc))[:number]
    lowest = min(by_auc[0].auc, teacher_auc) - max_auc_drop
    within = sorted((each for each in by_auc if each.auc >= lowest), key=lambda each: each.size_bytes)
    below = [each for each in by_auc if each.auc < lowest and each.size_bytes < within[0].size_bytes]
    names = (dict.fromkeys(each.name for each in group) for group in (within, below))
    in_turns = [name for pair in itertools.zip_longest(*names) for name in pair if name is not None]
    return list(dict.fromkeys([*in_turns, *(each.name for each in by_auc)]))[:number]
