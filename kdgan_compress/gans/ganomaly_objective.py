"""GANomaly's step, by which P-KDGAN's encoder-decoder-encoder family trains."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdgan_compress.errors import KdganError
from kdgan_compress.gans.objective import Batch, Update, check_weights, is_used
from kdgan_compress.losses import Reduction, discriminator_cross_entropy, l1, l2


@dataclass(frozen=True)
class GanomalyObjective:
    """GANomaly's step: the generator on L_g (Eq. 6), then the discriminator on L_d, both of one forward pass.

    L_g = w_con S_con + w_enc S_enc + w_adv S_adv. A family without z2 has no S_enc. D's gradient is no part of the
    generator's update, and f(x) is a constant in it.
    """

    is_capturable: ClassVar[bool] = True
    """Nothing is read on the host, so a step on a GPU can be recorded as a whole."""

    w_con: float = 10.0
    w_enc: float = 1.0
    w_adv: float = 1.0
    reduction: Reduction = "mean"

    def __post_init__(self) -> None:
        check_weights(w_con=self.w_con, w_enc=self.w_enc, w_adv=self.w_adv)

    def updates(self, batch: Batch) -> Iterator[Update]:
        """See ``Objective.updates``."""
        images, discriminator, shares = batch.images, batch.gan.discriminator, batch.shares
        outputs = batch.forward(images)
        if not batch.has_own_losses:
            yield Update("generator", None, {}, outputs)
            return
        if discriminator is None:
            raise KdganError(
                "A GAN that trains on its own losses must have a discriminator",
                "found none",
                "Give the Gan one, or distil by structure 1 (K_l alone)",
            )
        (features, logit), (features_hat, logit_hat) = _judge(batch, discriminator, outputs["x_hat"])

        loss, terms = None, {}
        if is_used(batch.weight_g):
            terms = {
                "s_con": l1(images, outputs["x_hat"], self.reduction, shares),
                "s_adv": l2(features.detach(), features_hat, self.reduction, shares),
            }
            loss = self.w_con * terms["s_con"] + self.w_adv * terms["s_adv"]
            if "z2" in outputs:
                terms["s_enc"] = l2(outputs["z1"], outputs["z2"], self.reduction, shares)
                loss = loss + self.w_enc * terms["s_enc"]
            loss = batch.weight_g * loss
        yield Update("generator", loss, terms, outputs, keeps_graph=is_used(batch.weight_d))

        if is_used(batch.weight_d):
            cross_entropy = discriminator_cross_entropy(logit, logit_hat, shares)
            yield Update("discriminator", batch.weight_d * cross_entropy, {"s_ce": cross_entropy})


Verdict = tuple[Tensor, Tensor]


def _judge(batch: Batch, discriminator: nn.Module, x_hat: Tensor) -> tuple[Verdict, Verdict]:
    """D's features and logits of x and of x̂; both updates go back through this one pass, each to its own network."""
    if not batch.gan.is_batch_independent:
        return discriminator(batch.images), discriminator(x_hat)
    features, logits = discriminator(torch.cat([batch.images, x_hat]))
    (features, features_hat), (logit, logit_hat) = features.chunk(2), logits.chunk(2)
    return (features, logit), (features_hat, logit_hat)
