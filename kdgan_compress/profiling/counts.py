"""Parameters and multiply-accumulates of the deployed graph, counted on a copy in evaluation mode at batch 1."""

import copy
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdgan_compress.gans import ImageFormat, Scorer


@dataclass(frozen=True)
class Counts:
    """Costs of scoring one image.

    Attributes:
        num_params: Parameters that the score depends on, norm weights included.
        conv_macs: Multiply-accumulates of convolutions and transposed convolutions.
        fvcore_flops: fvcore's total, which calls a multiply-accumulate a FLOP and counts norm layers and most
            matrix products (``cvgad``'s SSIM) too.
    """

    num_params: int
    conv_macs: int
    fvcore_flops: int


def count(generator: nn.Module, image_format: ImageFormat) -> Counts:
    """Count a generator that has ``anomaly_score``; it is left as it was."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fvcore imports and traces by ways that torch has deprecated
        from fvcore.nn import FlopCountAnalysis

        scorer = Scorer(copy.deepcopy(generator)).eval().requires_grad_(True)
        image = torch.zeros(1, image_format.image_channels, image_format.image_size, image_format.image_size)
        flops = FlopCountAnalysis(scorer, image).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return Counts(
            num_params=_num_used_parameters(scorer, torch.linspace(-1, 1, image.numel()).view_as(image)),
            conv_macs=int(flops.by_operator()["conv"]),
            fvcore_flops=int(flops.total()),
        )


def _num_used_parameters(scorer: nn.Module, image: Tensor) -> int:
    """Parameters with a gradient from the score: ``ed_ehat``'s second encoder, say, is none of them."""
    parameters = list(scorer.parameters())
    with torch.enable_grad():
        gradients = torch.autograd.grad(scorer(image).sum(), parameters, allow_unused=True)
    return sum(p.numel() for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None)
