"""Fixtures that trainings compared bit for bit, or with a loop by hand, share."""

from collections.abc import Iterator

import pytest


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread, since sums in another order are another training."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Float64 throughout: Adam blows up roundings of tiny gradients, and a loop by hand rounds in another order."""
    import torch

    from kdgan_compress.distillation import trainer as engine

    monkeypatch.setattr(engine, "normalize_images", lambda images: images.double() / 127.5 - 1)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
