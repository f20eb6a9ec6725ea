"""Successive halving with a constraint: which candidates a short training lets through to the full one.

Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization", 2016. Their rule ranks
by the loss alone. Here the smallest candidate within an allowed drop of AUC is wanted, and after a short training all
are far below the teacher, so drops are measured from the best candidate of the round.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

MIN_SURVIVORS = 2


@dataclass(frozen=True)
class Scored:
    """A candidate after a round: its name, AUC in [0, 1] and bytes."""

    name: str
    auc: float
    size_bytes: int


def survivors(candidates: Sequence[Scored], fraction: float, max_auc_drop: float | None) -> list[str]:
    """Names of the candidates that go on: a fraction of them, at least two, the most promising first.

    With an allowed drop these are the smallest of those within it of the round's best, then those that miss it by
    least. Without one they are those of the highest AUC. Equal ones are ordered by bytes.

    Args:
        candidates: At least one.
        fraction: In (0, 1].
        max_auc_drop: Allowed drop, ≥ 0; None for the highest AUC.
    """
    best = max(each.auc for each in candidates)
    allowed = 0.0 if max_auc_drop is None else max_auc_drop
    ranked = sorted(candidates, key=lambda each: (max(0.0, best - each.auc - allowed), each.size_bytes, each.name))
    number = max(MIN_SURVIVORS, math.ceil(fraction * len(candidates)))
    return [each.name for each in ranked[:number]]
