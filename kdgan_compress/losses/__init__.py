"""Pure loss functions: tensors in, one scalar tensor out (or, named ``per_image``, one number an image)."""

from kdgan_compress.losses.adversarial import discriminator_cross_entropy, gradient_penalty, wasserstein_loss
from kdgan_compress.losses.distances import Reduction, l1, l1_per_image, l2
from kdgan_compress.losses.latent import categorical_loss, latent_loss, mutual_information_loss
from kdgan_compress.losses.negative import is_far, negative_loss
from kdgan_compress.losses.similarity import ssim_loss, ssim_loss_per_image, ssim_per_image

__all__ = [
    "Reduction",
    "categorical_loss",
    "discriminator_cross_entropy",
    "gradient_penalty",
    "is_far",
    "l1",
    "l1_per_image",
    "l2",
    "latent_loss",
    "mutual_information_loss",
    "negative_loss",
    "ssim_loss",
    "ssim_loss_per_image",
    "ssim_per_image",
    "wasserstein_loss",
]
