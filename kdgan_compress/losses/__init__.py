"""Pure loss functions: tensors in, one scalar tensor out."""

from kdgan_compress.losses.adversarial import discriminator_cross_entropy
from kdgan_compress.losses.distances import Reduction, l1, l2

__all__ = ["Reduction", "discriminator_cross_entropy", "l1", "l2"]
