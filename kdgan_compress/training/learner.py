"""A GAN together with what its training carries along: objective, optimisers, averaged weights, connectors."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from kdgan_compress.gans import Gan, evaluating
from kdgan_compress.objectives import GanomalyObjective, Objective, Outputs


class Learner:
    """A GAN that can be trained, saved in the middle and continued.

    Args:
        gan: The networks; they are trained in place.
        betas: Adam's β1, β2.
        average_decay: d of the generator's exponential moving average, whose decay at step t is min(d, t/(t + 10)):
            the early average forgets the random start. 0: no averaging.
        objective: The GAN's own losses; None for GANomaly's.
    """

    def __init__(
        self,
        gan: Gan,
        betas: tuple[float, float] = (0.5, 0.99),
        average_decay: float = 0.99,
        objective: Objective | None = None,
    ) -> None:
        self.gan = gan
        self.objective = objective or GanomalyObjective()
        self.connectors: nn.Module | None = None
        self._betas = betas
        self._decay = average_decay
        self._average: AveragedModel | None = None
        self._optimizers: dict[str, torch.optim.Adam] = {}

    @property
    def scored_generator(self) -> nn.Module:
        """The generator that is scored and saved: the averaged one, once there is one."""
        return self.gan.generator if self._average is None else self._average.module

    def begin_stage(self, networks: tuple[str, ...]) -> None:
        """Start anew what a stage owns: an optimiser for each network it moves, and the average."""
        modules = self.gan.modules()
        self._optimizers = {}
        for name in networks:
            parameters = list(modules[name].train().parameters())
            if name == "generator" and self.connectors is not None:
                parameters += self.connectors.parameters()
            self._optimizers[name] = torch.optim.Adam(parameters, betas=self._betas, fused=True)
        if "generator" in networks and self._decay > 0:
            self._average = AveragedModel(self.gan.generator, multi_avg_fn=self._average_step)
            self._average.eval()

    def step(self, network: str, loss: Tensor, learning_rate: float) -> None:
        """Move one network, and only it, one Adam step down ``loss``."""
        optimizer = self._optimizers[network]
        (group,) = optimizer.param_groups
        group["lr"] = learning_rate
        optimizer.zero_grad()
        loss.backward(inputs=group["params"])
        optimizer.step()
        if network == "generator" and self._average is not None:
            self._average.update_parameters(self.gan.generator)

    def connect(self, outputs: Outputs) -> Outputs:
        """Tapped outputs in the teacher's shapes."""
        connected: Outputs = outputs if self.connectors is None else self.connectors(outputs)
        return connected

    def is_finite(self) -> bool:
        """Whether no weight is NaN or infinite."""
        return all(bool(p.isfinite().all()) for network in self.gan.modules().values() for p in network.parameters())

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later process needs to go on from here; tensors and plain numbers only."""
        networks: dict[str, nn.Module] = dict(self.gan.modules())
        if self._average is not None:
            networks["average"] = self._average
        if self.connectors is not None:
            networks["connectors"] = self.connectors
        return {
            "networks": {name: network.state_dict() for name, network in networks.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict()``, after ``begin_stage`` of the same stage."""
        networks: dict[str, nn.Module | None] = {
            **self.gan.modules(),
            "average": self._average,
            "connectors": self.connectors,
        }
        if "average" not in state["networks"]:
            self._average = None
        for name, saved in state["networks"].items():
            network = networks[name]
            assert network is not None, f"{name} was saved but this stage has none"
            network.load_state_dict(saved)
        for name, saved in state["optimizers"].items():
            self._optimizers[name].load_state_dict(saved)

    def _average_step(self, averaged: Any, current: Any, num_averaged: Any) -> None:
        step = float(num_averaged)
        torch._foreach_lerp_(averaged, current, 1 - min(self._decay, step / (step + 10)))


@contextmanager
def frozen(gan: Gan) -> Iterator[None]:
    """Hold a GAN still: no gradient reaches it and no buffer moves (batch norm uses its running statistics)."""
    networks = gan.modules().values()
    required = [(parameter, parameter.requires_grad) for network in networks for parameter in network.parameters()]
    with ExitStack() as stack:
        for network in networks:
            stack.enter_context(evaluating(network))
            network.requires_grad_(False)
        try:
            yield
        finally:
            for parameter, flag in required:
                parameter.requires_grad_(flag)
