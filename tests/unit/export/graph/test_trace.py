"""Traces: torch's numbers, nothing of where they were made, and no change of shape that isn't one."""

import logging
import re
import warnings

import numpy as np
import onnx_ir as ir
import pytest
import torch
from tiny_graphs import architecture, generator_of, operators, photos, resized
from torch import nn
from torch.nn.functional import gelu

from kdgan_compress.export.graph.trace import IMAGES, SCORE, X_HAT, quiet, trace
from kdgan_compress.gans import ImageFormat


def outputs_of(model: ir.Model, images: np.ndarray) -> list[np.ndarray]:
    from tiny_graphs import session_of

    return session_of(model).run(None, {IMAGES: images})


def test_core_gives_score_and_reconstruction():
    described = architecture("ede", "batch", 3)
    generator = generator_of(described).train()
    generator.eval()
    core = trace(generator, described, "decoder")
    assert [value.name for value in core.graph.outputs] == [SCORE, X_HAT]
    images = resized(photos(7, 16, 16, 3), 16)
    with torch.no_grad():
        expected = [generator.anomaly_score(images), generator(images)[1]]
    for found, wanted in zip(outputs_of(core, images.numpy()), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert not generator.decoder._forward_hooks


def test_core_tells_nothing_of_where_it_was_made():
    described = architecture("ede", "batch", 1)
    core = trace(generator_of(described), described)
    assert all(not part.metadata_props and not part.doc_string for part in (core.graph, *core.graph))
    assert core.functions == {}
    assert set(core.opset_imports) == {""}
    proto = ir.to_proto(core)
    for tensor in proto.graph.initializer:
        tensor.ClearField("raw_data")
    assert re.search(rb"\.py|(/[\w.-]+){2}", proto.SerializeToString()) is None


def test_quiet_leaves_loggers_and_warnings_as_they_were():
    loggers = [logging.getLogger(name) for name in (None, "torch.onnx", "onnxscript")]
    before = [(logger.level, list(logger.handlers)) for logger in loggers]
    with quiet():
        warnings.warn("not to be seen", stacklevel=1)
        logging.getLogger("torch.onnx").error("nor this")
    assert [(logger.level, list(logger.handlers)) for logger in loggers] == before
    with pytest.warns(UserWarning, match="to be seen"):
        warnings.warn("to be seen", stacklevel=1)


class Compares(nn.Module):
    """Compares an image with what a function makes of it, through a convolution that sees places."""

    def __init__(self, makes):
        super().__init__()
        self.makes = makes
        self.layer = nn.Conv2d(1, 1, 16)

    def anomaly_score(self, images):
        return self.layer(self.makes(images)).flatten() + images.abs().flatten(1).mean(1)


MADE = {
    "mirrored": lambda x: x.flip(3),
    "both ways": lambda x: x.flip(2, 3) - x,
    "rolled": lambda x: x.roll((1, 3), (2, 3)),
    "sliced": lambda x: torch.cat([x[:, :, 8:], x[:, :, :8]], 2),
    "every other": lambda x: torch.cat([x[..., ::2], x[..., 1::2]], 3),
    "all of it": lambda x: x[:, :, 0:16, :][..., None][..., 0],
    "shuffled": lambda x: torch.pixel_shuffle(torch.pixel_unshuffle(x, 2).flip(1), 2),
    "reshaped": lambda x: x.view(-1, 1, 4, 64).transpose(2, 3).reshape(-1, 1, 16, 16),
    "there and back": lambda x: x.flatten(1).view(-1, 1, 16, 16)[:, :, :, :, None].squeeze(4),
    "by groups": lambda x: nn.functional.group_norm(torch.cat([x, x * 2], 1), 2)[:, 1:],
    "by the batch's size": lambda x: gelu(x.view(x.shape[0], -1)).view(x.shape[0], 1, 16, 16),
}


@pytest.mark.parametrize("name", MADE)
def test_what_moves_pixels_is_kept(name):
    """A mirrored image has the size of the image; inner steps of an operator have no known shape at all."""
    torch.manual_seed(0)
    generator = Compares(MADE[name]).eval()
    core = trace(generator, ImageFormat(16, 1))
    for count in (1, 5):
        images = resized(photos(count, 16, 16, 1), 16)
        with torch.no_grad():
            expected = generator.anomaly_score(images)
        np.testing.assert_allclose(outputs_of(core, images.numpy())[0], expected, rtol=1e-4, atol=1e-5)
    if name == "all of it":
        assert "Slice" not in operators(core)
