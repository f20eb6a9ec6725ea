"""A ``GanState`` that records what an objective asks of it, shared by the tests of the objectives."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from kdgan_compress.gans import Gan


@dataclass
class Update:
    """One update that was asked for, with the losses that were reduced since the one before."""

    network: str
    loss: torch.Tensor
    retain_graph: bool
    losses: dict[str, torch.Tensor]

    @property
    def name(self) -> tuple[str, tuple[str, ...]]:
        return self.network, tuple(self.losses)


@dataclass
class RecordingState:
    """Updates nothing itself; ``on_update`` may.

    A value per sample is named by its attribute ``loss_name``, if a test set one.
    """

    gan: Gan
    forward: Callable[[torch.Tensor], Any]
    on_update: Callable[[Update], None] = lambda update: None
    updates: list[Update] = field(default_factory=list)
    _reduced: dict[str, torch.Tensor] = field(default_factory=dict)

    def reduce(self, per_sample: torch.Tensor) -> torch.Tensor:
        assert per_sample.dim() == 1
        name = getattr(per_sample, "loss_name", f"loss {len(self._reduced)}")
        self._reduced[name] = per_sample.mean()
        return self._reduced[name]

    def update(self, network: str, loss: torch.Tensor, retain_graph: bool = False) -> None:
        assert loss.dim() == 0
        self.updates.append(Update(network, loss, retain_graph, self._reduced))
        self._reduced = {}
        self.on_update(self.updates[-1])
