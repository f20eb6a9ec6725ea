"""One stage of one student: what its steps work on, and what is created when it begins."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from kdgan_compress.distillation.hooks import Connectors, FeatureHooks
from kdgan_compress.distillation.loss import DistillationLoss
from kdgan_compress.distillation.policies import Stage
from kdgan_compress.distillation.step import Targets
from kdgan_compress.distillation.train_log import EpochPosition
from kdgan_compress.distillation.train_state import TrainState, frozen
from kdgan_compress.errors import KdganError
from kdgan_compress.gans import Gan, normalize_images
from kdgan_compress.gans.objective import Outputs

Precision = Literal["float32", "tf32", "bfloat16"]


BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class TrainingSettings:
    """How steps are made, whatever the stage.

    Attributes:
        batch_size: Images per step, ≥ 1; an epoch's last batch may be smaller. With batch norm, a last batch of one
            image is joined to the one before it.
        learning_rate_decay: ``"linear"``: from the stage's learning rate at its first step to 0 after its last.
            ``"constant"``: none.
        seed: Seed of the order of images.
        precision: Of matrix products on a GPU: ``"float32"``, ``"tf32"`` or, by autocast, ``"bfloat16"``; the last two
            are faster and less exact. A CPU always computes in float32.
    """

    batch_size: int = 16
    learning_rate_decay: Literal["linear", "constant"] = "linear"
    seed: int = 0
    precision: Precision = "float32"


@dataclass(frozen=True, eq=False)
class StageRun:
    """One stage of one student.

    Attributes:
        stage: Loss set, epochs and learning rates.
        stage_index: Position in the schedule, from 0; part of the seed of the order of images.
        student: Trained by μ L_g, ν L_d and λ K_l.
        teacher: Frozen, or trained by α L_g and β L_d; None where ``targets`` replaces it or nothing is distilled.
        images: All training images, uint8 (N, C, S, S).
        k_l: The distillation loss.
        settings: Batch size and so on.
        epochs_done: Epochs finished by an earlier process.
        within_epoch: Steps of the next epoch that an earlier process finished; None for none.
        targets: The frozen teacher's features for ``images``, such as a teacher cache; None to compute them.
    """

    stage: Stage
    stage_index: int
    student: TrainState
    teacher: TrainState | None
    images: Tensor
    k_l: DistillationLoss
    settings: TrainingSettings
    epochs_done: int = 0
    targets: Targets | None = None
    within_epoch: EpochPosition | None = None

    @property
    def has_batch_norm(self) -> bool:
        """Whether a network that is trained normalises by its batch, which needs two images."""
        states = [self.student, self.teacher if self.stage.loss_set.trains_teacher else None]
        networks = [network for state in states if state is not None for network in state.gan.networks().values()]
        return any(isinstance(module, BATCH_NORMS) for network in networks for module in network.modules())

    def begin(self) -> None:
        """Create the optimisers, EMAs and connectors that the stage's loss set needs."""
        losses, student, teacher = self.stage.loss_set, self.student, self.teacher
        if teacher is None and (losses.trains_teacher or (losses.distils and self.targets is None)):
            raise KdganError(
                f"Stage {self.stage.name} needs a teacher", "found none", "Give one, or train with mu and nu only"
            )
        if losses.distils and student.connectors is None:
            student.connectors = self.check_distillation()
        student.begin_stage(_trained(student.gan, {"generator": 1.0, "discriminator": losses.nu}))
        if teacher is not None and losses.trains_teacher:
            teacher.begin_stage(_trained(teacher.gan, {"generator": losses.alpha, "discriminator": losses.beta}))

    def check_distillation(self) -> Connectors:
        """Check that K_l fits student, teacher and batches.

        Returns:
            Connectors where the student's features need the teacher's shapes, found from one image.

        Raises:
            KdganError: A tap or its feature does not fit a term, or a batch has fewer images than a term compares.
        """
        for term in self.k_l.terms:
            term.check_batch_size(min(self.settings.batch_size, len(self.images)))
        image = normalize_images(self.images[:1])
        if self.targets is not None:
            teacher = self.targets(image, torch.zeros(1, dtype=torch.int64, device=image.device))
        else:
            assert self.teacher is not None
            teacher = self._features(self.teacher.gan, image)
        student = self._features(self.student.gan, image)
        connected = {name: feature for name, feature in student.items() if name in self.k_l.connected_taps}
        connectors = Connectors(connected, teacher).to(image.device, image.dtype)
        with torch.no_grad():
            list(self.k_l(connectors(student), teacher))
        return connectors

    def _features(self, gan: Gan, images: Tensor) -> Outputs:
        with torch.no_grad(), frozen(gan), FeatureHooks(gan.generator, self.k_l.taps(gan)) as hooks:
            return self.k_l.add_reencoded_z2(hooks(images), hooks)


def _trained(gan: Gan, weights: Mapping[str, float]) -> list[str]:
    """The networks whose losses have a weight; without a discriminator the objective decides what L_d is."""
    return [name for name, weight in weights.items() if weight > 0 and name in gan.networks()]
