"""A discriminator that saturates: its loss is 0 or its bound, so that the generator learns nothing more from it."""

import logging
from pathlib import Path

from kdgan_compress.distillation.train_log import TrainRecord

CROSS_ENTROPY = "_ce"
"""How the names of L_d end in the families whose discriminator has a logit."""

MIN_LOSS, MAX_LOSS = 1e-3, 20.0

logger = logging.getLogger(__name__)


def warn_of(record: TrainRecord, run: Path) -> None:
    """Log a warning if the epoch's mean L_d says that a discriminator saturates."""
    for name, value in record.losses.items():
        if record.epoch_done and name.endswith(CROSS_ENTROPY) and not MIN_LOSS <= value <= MAX_LOSS:
            logger.warning(
                "%s: the discriminator saturates (%s is %.2g on average over epoch %d of stage %s, up to step %d); "
                "lower the learning rate, raise the batch size, or set objective.reinit_discriminator to 1e-5",
                *(run, name, value, record.epoch, record.stage, record.steps),
            )
