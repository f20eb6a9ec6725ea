"""Traces of tiny generators, each taken once."""

import pytest
from tiny_graphs import architecture, generator_of, trace_once

from kdgan_compress.export import detector_file


@pytest.fixture(scope="module")
def quick():
    """``write_detector`` with graphs that were traced before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector_file, "trace", trace_once)
        yield


@pytest.fixture(scope="session")
def traced():
    """Generator, core and description by family, norm and channels."""

    def get(family="ede", norm="batch", image_channels=1, *, x_hat=None, **changed):
        described = architecture(family, norm, image_channels, **changed)
        generator = generator_of(described)
        return generator, trace_once(generator, described, x_hat), described

    return get
