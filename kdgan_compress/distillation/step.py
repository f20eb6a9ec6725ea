"""One training step: Algorithm 1 of P-KDGAN with the losses of Eq. 6, 7 and 9.

    L = {α L_g^T, β L_d^T, μ L_g^S, ν L_d^S, λ K_l}                                                    (Eq. 9)

A loss set says which of the five coefficients are above 0: structures ① and ② leave the teacher frozen, ③ and ④ train
it further. L_g and L_d belong to the GAN family (``gans/``), K_l to ``distillation/loss.py``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kdgan_compress.distillation.loss import DistillationLoss
from kdgan_compress.distillation.policies import LossSet
from kdgan_compress.distillation.train_state import TrainState
from kdgan_compress.gans.objective import Outputs

Targets = Callable[[Tensor, Tensor], Outputs]
"""The teacher's features for images (B, C, S, S) and their indices: computed now, or stored before."""


@dataclass(eq=False)
class StageModels:
    """What a step trains, and with which losses.

    Attributes:
        student: Trained by μ L_g, ν L_d and λ K_l.
        teacher: Trained by α L_g and β L_d; None where the loss set leaves it frozen.
        loss_set: The five coefficients.
        k_l: The distillation loss.
        load_images: Training images by index, (B, C, S, S) in [−1, 1].
        targets: The teacher's features; None where λ is 0.
    """

    student: TrainState
    teacher: TrainState | None
    loss_set: LossSet
    k_l: DistillationLoss
    load_images: Callable[[Tensor], Tensor]
    targets: Targets | None


def train_step(models: StageModels, indices: Tensor, step: int) -> dict[str, Tensor]:
    """Update teacher and student on one batch.

    Args:
        models: What is trained.
        indices: Which training images the batch has.
        step: Index of the step in its stage, from 0.

    Returns:
        Every unweighted loss by name; the teacher's begin with ``teacher_``.
    """
    student, teacher, weights = models.student, models.teacher, models.loss_set
    images = models.load_images(indices)
    losses: dict[str, Tensor] = {}

    # The teacher first, on its own losses α L_g^T + β L_d^T (structures ③ and ④).
    if teacher is not None:
        teacher_losses = teacher.objective.train_step(teacher, images, weights.alpha, weights.beta, step)
        losses = {f"teacher_{name}": loss for name, loss in teacher_losses.items()}

    # Then the student on μ L_g^S + ν L_d^S + λ K_l. K_l compares it with what the teacher now computes.
    if models.targets is None:
        return losses | student.objective.train_step(student, images, weights.mu, weights.nu, step)
    teacher_features = models.targets(images, indices)
    k_losses: dict[str, Tensor] = {}

    def weighted_k_l(outputs: Outputs) -> Tensor:
        student_features = student.connect(models.k_l.add_reencoded_z2(outputs, student.forward))
        terms = []
        for name, weight, per_sample in models.k_l(student_features, teacher_features, student.within_batch):
            k_losses[name] = student.reduce(per_sample)
            terms.append(weight * k_losses[name])
        return weights.lam * torch.stack(terms).sum(0)

    losses |= student.objective.train_step(student, images, weights.mu, weights.nu, step, weighted_k_l)
    return losses | k_losses
