"""Pure loss functions: tensors in, one value per sample out, shape (B,). The caller takes the mean."""

from kdgan_compress.losses.adversarial import discriminator_cross_entropy, gradient_penalty, wasserstein_loss
from kdgan_compress.losses.distances import Distance, correlation, cosine, l1, l2
from kdgan_compress.losses.latent import (
    categorical_loss,
    is_outlier_code,
    latent_loss,
    mutual_information_loss,
    negative_loss,
    outlier_codes,
)
from kdgan_compress.losses.relational import (
    attention,
    fsp,
    fsp_matrix,
    rkd_angle,
    rkd_distance,
    similarity_preserving,
)
from kdgan_compress.losses.similarity import ssim, ssim_loss

__all__ = [
    "Distance",
    "attention",
    "categorical_loss",
    "correlation",
    "cosine",
    "discriminator_cross_entropy",
    "fsp",
    "fsp_matrix",
    "gradient_penalty",
    "is_outlier_code",
    "l1",
    "l2",
    "latent_loss",
    "mutual_information_loss",
    "negative_loss",
    "outlier_codes",
    "rkd_angle",
    "rkd_distance",
    "similarity_preserving",
    "ssim",
    "ssim_loss",
    "wasserstein_loss",
]
