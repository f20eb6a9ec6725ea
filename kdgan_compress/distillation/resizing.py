"""A student of smaller images than its teacher's: the teacher sees the large image, the student the resized one.

Training images have the teacher's size. The student's objective and its generator bring them to the student's size; its
x̂ is brought back to the teacher's by its connectors (``hooks.Connectors``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.functional import interpolate

from kdgan_compress.gans import Gan
from kdgan_compress.gans.objective import DistillationTerm, GanState, Objective, Weight

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class ResizedObjective:
    """A student's objective on training images that are resized first.

    Attributes:
        objective: The losses.
        image_size: Side of the student's images in pixels.
    """

    objective: Objective
    image_size: int

    def train_step(
        self,
        state: GanState,
        images: Float[Tensor, "B C T T"],
        weight_g: Weight,
        weight_d: Weight,
        step: int = 0,
        k_l: DistillationTerm | None = None,
    ) -> dict[str, Tensor]:
        """Train on one batch (``gans.objective.Objective``)."""
        resized = resize_batch(images, self.image_size)
        return self.objective.train_step(state, resized, weight_g, weight_d, step, k_l)


def resize_batch(images: Float[Tensor, "B C T T"], image_size: int) -> Float[Tensor, "B C S S"]:
    """Bring images to the side S as the detector does (antialiased, bilinear); those that have it stay as they are."""
    if images.shape[-1] == image_size:
        return images
    size = (image_size, image_size)
    return interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)


def accept_larger_images(gan: Gan, image_size: int) -> None:
    """Let a generator resize its input, so that its features of the teacher's images can be read."""

    def resize_input(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return resize_batch(inputs[0], image_size), *inputs[1:]

    gan.generator.register_forward_pre_hook(resize_input)
