"""Which losses train which network: P-KDGAN's loss sets (Eq. 9) as data, and the stages that use them.

A set's coefficients determine what is frozen and which optimisers exist.
"""

import re
from dataclasses import dataclass

from kdgan_compress.errors import KdganError
from kdgan_compress.gans.objective import is_nonzero


@dataclass(frozen=True)
class LossSet:
    """Coefficients of L = {α L_g^T, β L_d^T, μ L_g^S, ν L_d^S, λ K_l} (Eq. 9); the paper's are 0 or 1.

    Attributes:
        alpha: Weight of the teacher's generator loss.
        beta: Weight of the teacher's discriminator loss.
        mu: Weight of the student's generator loss.
        nu: Weight of the student's discriminator loss.
        lam: Weight of the distillation loss K_l, which trains the student only.
    """

    alpha: float = 0.0
    beta: float = 0.0
    mu: float = 0.0
    nu: float = 0.0
    lam: float = 0.0

    def __post_init__(self) -> None:
        coefficients = (self.alpha, self.beta, self.mu, self.nu, self.lam)
        if not min(coefficients) >= 0 or not self.mu + self.lam > 0:
            raise KdganError(
                "A loss set needs coefficients ≥ 0 and must train the student's generator (mu or lam above 0)",
                f"got alpha, beta, mu, nu, lam = {', '.join(f'{c:g}' for c in coefficients)}",
                "Structures 1 to 4 are the paper's",
            )

    @property
    def trains_teacher(self) -> bool:
        """Whether the teacher is trained further (structures ③ and ④) or frozen."""
        return is_nonzero(self.alpha) or is_nonzero(self.beta)

    @property
    def distils(self) -> bool:
        """Whether K_l trains the student."""
        return is_nonzero(self.lam)

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher is needed."""
        return self.distils or self.trains_teacher


STRUCTURES: dict[int, LossSet] = {
    1: LossSet(lam=1),
    2: LossSet(mu=1, nu=1, lam=1),
    3: LossSet(alpha=1, beta=1, lam=1),
    4: LossSet(alpha=1, beta=1, mu=1, nu=1, lam=1),
}
"""KDGAN-① to KDGAN-④ (section III-D)."""

FROM_SCRATCH = LossSet(mu=1, nu=1)
"""Training without a teacher: how teachers are made, and the baseline for every distilled student."""


@dataclass(frozen=True)
class Stage:
    """One stage of training under one loss set.

    Attributes:
        name: Its name in the log: ``"2"``, ``"from-scratch"``, ….
        loss_set: Which losses train which network.
        epochs: Passes over the training images, ≥ 1.
        learning_rate: Adam's learning rate at the stage's first step, for the student.
        teacher_learning_rate: The same for the teacher, in sets that train it.
    """

    name: str
    loss_set: LossSet
    epochs: int
    learning_rate: float
    teacher_learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise KdganError("A stage needs at least 1 epoch", f"got {self.epochs}", "Give --epochs 1 or more")


def parse_schedule(text: str) -> tuple[int, ...]:
    """Structures of a schedule such as ``"2"``, ``"2->3"`` or ``"1→2→4"``, first stage first.

    Raises:
        KdganError: Not a chain of structures 1 to 4.
    """
    parts = [part.strip() for part in re.split("->|→", text)]
    if not all(part.isdecimal() and int(part) in STRUCTURES for part in parts):
        raise KdganError(
            "A schedule is a chain of structures 1 to 4 joined by ->",
            f"got {text!r}",
            'Try "2", "2->3" (the paper\'s best) or "2->4"',
        )
    return tuple(int(part) for part in parts)
