"""What a detector file is compared with: the module it was exported from, and images as it takes them."""

import dataclasses

from torch import nn

from kdgan_compress.data import DataSettings
from kdgan_compress.data.tiles import TileSettings
from kdgan_compress.experiment.checkpoint import Checkpoint
from kdgan_compress.export.rank import truncate_rank
from kdgan_compress.runtime import Detector


def at_detector_size(data: DataSettings, detector: Detector) -> DataSettings:
    """The settings with photos at the detector's frame; unchanged for a detector without one.

    Only whole photos are of use then, so there is one crop.
    """
    if detector.frame is None:
        return data
    stride = int(detector.metadata.get("tile_stride", 1))
    return dataclasses.replace(data, tiles=TileSettings(frame=detector.frame, stride=stride, num_crops=1))


def scorer_of(checkpoint: Checkpoint, detector: Detector) -> nn.Module:
    """The module that a detector of this model was exported from, with the detector's rank."""
    rank = detector.metadata.get("rank")
    return checkpoint.scorer() if rank is None else truncate_rank(checkpoint.scorer(), int(rank))
