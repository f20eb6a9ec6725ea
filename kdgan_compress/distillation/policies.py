"""Which losses train whom: P-KDGAN's loss sets (Eq. 9) as data, and stages of them in a row (Algorithm 1).

What is frozen and which optimisers exist is derived from a set's coefficients and stated nowhere else.
"""

import re
from dataclasses import dataclass

from kdgan_compress.errors import KdganError


@dataclass(frozen=True)
class LossSet:
    """Coefficients of L = {α L_g^T, β L_d^T, μ L_g^S, ν L_d^S, λ K_l} (Eq. 9); the paper's are 0 or 1.

    Attributes:
        alpha: Weight of the teacher's generator loss.
        beta: Weight of the teacher's discriminator loss.
        mu: Weight of the student's generator loss.
        nu: Weight of the student's discriminator loss.
        lam: Weight of the distillation loss K_l, which moves the student only.
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
                "A loss set must have coefficients ≥ 0 and train the student's generator (mu or lam above 0)",
                f"got alpha, beta, mu, nu, lam = {', '.join(f'{c:g}' for c in coefficients)}",
                "Structures 1 to 4 are the paper's",
            )

    @property
    def trains_teacher(self) -> bool:
        """Whether the teacher goes on training (structures ③ and ④) or is frozen."""
        return self.alpha > 0 or self.beta > 0

    @property
    def needs_teacher(self) -> bool:
        """Whether there must be a teacher at all."""
        return self.lam > 0 or self.trains_teacher


STRUCTURES: dict[int, LossSet] = {
    1: LossSet(lam=1),
    2: LossSet(mu=1, nu=1, lam=1),
    3: LossSet(alpha=1, beta=1, lam=1),
    4: LossSet(alpha=1, beta=1, mu=1, nu=1, lam=1),
}
"""KDGAN-① to KDGAN-④ (section III-D)."""

FROM_SCRATCH = LossSet(mu=1, nu=1)
"""A GAN trained on its own losses: how teachers are made, and the student that distillation has to beat."""


@dataclass(frozen=True)
class Stage:
    """One stretch of training under one loss set.

    Attributes:
        name: What the log calls it: ``"2"``, ``"alone"``, ….
        loss_set: Who is trained by what.
        epochs: Passes over the training images, ≥ 1.
        learning_rate: Adam's rate at the stage's first step, for the student.
        teacher_learning_rate: The same for the teacher, in sets that train it.
    """

    name: str
    loss_set: LossSet
    epochs: int
    learning_rate: float
    teacher_learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise KdganError("A stage must last at least 1 epoch", f"got {self.epochs}", "Give --epochs 1 or more")


def parse_schedule(text: str) -> tuple[int, ...]:
    """Structures of a schedule such as ``"2"``, ``"2->3"`` or ``"1→2→4"``, first stage first.

    Raises:
        KdganError: Not a chain of structures 1 to 4.
    """
    parts = [part.strip() for part in re.split("->|→", text)]
    if not all(part.isdecimal() and int(part) in STRUCTURES for part in parts):
        raise KdganError(
            "A schedule must be structures 1 to 4 joined by ->",
            f"got {text!r}",
            'Try "2", "2->3" (the paper\'s best) or "2->4"',
        )
    return tuple(int(part) for part in parts)
