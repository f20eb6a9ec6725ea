"""Count parameters and multiply-accumulates of the deployed model, on a copy in evaluation mode at batch size 1."""

import copy
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdgan_compress.gans import ImageFormat, Scorer
from kdgan_compress.scores import input_size


@dataclass(frozen=True)
class Counts:
    """Cost of scoring one image, or one photo with all its tiles.

    Attributes:
        num_params: Parameters that the score depends on, including those of norm layers.
        conv_macs: Multiply-accumulates of convolutions and transposed convolutions.
        fvcore_flops: fvcore's total, which counts a multiply-accumulate as one FLOP and includes norm layers and most
            matrix products (such as those of ``cvgad``'s SSIM).
    """

    num_params: int
    conv_macs: int
    fvcore_flops: int


def count(generator: nn.Module, image_format: ImageFormat) -> Counts:
    """Count a generator with ``anomaly_score``, or a ``FittedScorer``; it is not modified."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fvcore uses deprecated parts of torch
        from fvcore.nn import FlopCountAnalysis

        scorer = Scorer(copy.deepcopy(generator)).eval().requires_grad_(True)
        image = torch.zeros(1, image_format.image_channels, *input_size(generator, image_format.image_size))
        flops = FlopCountAnalysis(scorer, image).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return Counts(
            num_params=_num_used_parameters(scorer, torch.linspace(-1, 1, image.numel()).view_as(image)),
            conv_macs=int(flops.by_operator()["conv"]),
            fvcore_flops=int(flops.total()),
        )


def _num_used_parameters(scorer: nn.Module, image: Tensor) -> int:
    """Number of parameters that affect the score, which excludes, for example, ``ed_ehat``'s second encoder."""
    parameters = list(scorer.parameters())
    with torch.enable_grad():
        gradients = torch.autograd.grad(scorer(image).sum(), parameters, allow_unused=True)
    return sum(p.numel() for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None)
