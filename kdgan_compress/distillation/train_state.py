"""The state of a GAN in training: networks, objective, optimisers, EMA weights, connectors."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kdgan_compress.distillation.hooks import Connectors, FeatureHooks
from kdgan_compress.errors import KdganError
from kdgan_compress.gans import Gan, eval_mode
from kdgan_compress.gans.ede import GanomalyObjective
from kdgan_compress.gans.objective import Objective, Outputs

MakeOptimizer = Callable[..., torch.optim.Optimizer]
"""Called as ``make_optimizer(parameters, lr=…, betas=…)``."""


class TrainState:
    """A GAN that is trained in place and can be saved and resumed between epochs.

    Args:
        gan: The networks.
        betas: Adam's β1, β2.
        ema_decay: d of the generator's exponential moving average (EMA), whose decay at step t is min(d, t/(t + 10)),
            so that it does not remember the random start. 0: no EMA.
        objective: The GAN's own losses; None for GANomaly's.
        make_optimizer: ``torch.optim.Adam``, or an optimiser called like it.
    """

    def __init__(
        self,
        gan: Gan,
        betas: tuple[float, float] = (0.5, 0.99),
        ema_decay: float = 0.99,
        objective: Objective | None = None,
        make_optimizer: MakeOptimizer = torch.optim.Adam,
    ) -> None:
        self.gan = gan
        self.objective: Objective = objective or GanomalyObjective()
        self.connectors: Connectors | None = None
        self.betas, self.ema_decay = betas, ema_decay
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.num_averaged = 0
        self._make_optimizer = make_optimizer
        self._ema: nn.Module | None = None
        self._ema_params: tuple[list[Tensor], list[Tensor]] = [], []
        self._ema_buffers: list[tuple[Tensor, Tensor]] = []
        self._hooks: FeatureHooks | None = None

    @property
    def ema_generator(self) -> nn.Module:
        """The generator that is scored and saved: the EMA, once there is one."""
        return self.gan.generator if self._ema is None else self._ema

    def fresh_copy(self) -> "TrainState":
        """A copy of the networks and settings, before any stage."""
        gan = copy.deepcopy(self.gan)
        return TrainState(gan, self.betas, self.ema_decay, self.objective, self._make_optimizer)

    def begin_stage(self, networks: Sequence[str]) -> None:
        """Create what a stage starts with: an optimiser for each network it trains, and the EMA."""
        self.optimizers = {}
        for name in networks:
            _check_trainable(name, self.gan.networks()[name])
            parameters = list(self.gan.networks()[name].train().parameters())
            if name == "generator" and self.connectors is not None:
                parameters += self.connectors.parameters()
            self.optimizers[name] = self._make_optimizer(parameters, lr=0.0, betas=self.betas)
        if "generator" in networks and self.ema_decay > 0:
            self._ema = copy.deepcopy(self.gan.generator).eval().requires_grad_(False)
            self._ema_params = list(self._ema.parameters()), list(self.gan.generator.parameters())
            self._ema_buffers = list(zip(self._ema.buffers(), self.gan.generator.buffers(), strict=True))
            self.num_averaged = 0

    @contextmanager
    def hooked(self, taps: Mapping[str, str]) -> Iterator[FeatureHooks]:
        """Attach feature hooks to the generator inside ``with``; ``forward`` needs them."""
        with FeatureHooks(self.gan.generator, taps) as hooks:
            self._hooks = hooks
            try:
                yield hooks
            finally:
                self._hooks = None

    def forward(self, images: Tensor) -> Outputs:
        """Run the generator once on images (B, C, S, S) and return its features by name, each (B, ...)."""
        if self._hooks is None:
            raise KdganError("The generator has no hooks", "forward was called", "Call it inside `with hooked(taps)`")
        return self._hooks(images)

    def connect(self, outputs: Outputs) -> Outputs:
        """The student's features in the teacher's shapes."""
        connected: Outputs = outputs if self.connectors is None else self.connectors(outputs)
        return connected

    def reduce(self, per_sample: Tensor) -> Tensor:
        """The loss that is minimised: the mean of one value per sample (B,)."""
        return per_sample.mean() if len(per_sample) > 1 else per_sample.squeeze(0)  # cheaper at batch size 1

    def within_batch(self, loss: Callable[..., Tensor], *features: Tensor) -> Tensor:
        """A loss that compares the images of a batch with each other: features (B, ...) to values per sample (B,)."""
        return loss(*features)

    def update(self, network: str, loss: Tensor, retain_graph: bool = False) -> None:
        """One optimiser step of one network, and no other, on a reduced loss.

        Args:
            network: ``"generator"`` (with the connectors) or ``"discriminator"``.
            loss: A scalar.
            retain_graph: Whether another update uses the same graph.
        """
        optimizer = self.optimizers[network]
        optimizer.zero_grad()
        loss.backward(inputs=optimizer.param_groups[0]["params"], retain_graph=retain_graph)
        optimizer.step()
        if network == "generator" and self._ema is not None:
            self.update_ema()

    @torch.no_grad()
    def update_ema(self) -> None:
        """Move the EMA towards the generator; buffers are copied."""
        decay = min(self.ema_decay, self.num_averaged / (self.num_averaged + 10))
        torch._foreach_lerp_(*self._ema_params, 1 - decay)
        for average, current in self._ema_buffers:
            average.copy_(current)
        self.num_averaged += 1

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the learning rate of the next step."""
        for optimizer in self.optimizers.values():
            optimizer.param_groups[0]["lr"] = learning_rate

    def is_finite(self) -> bool:
        """Whether no weight is NaN or infinite."""
        return all(bool(p.isfinite().all()) for network in self.gan.networks().values() for p in network.parameters())

    def networks(self) -> dict[str, nn.Module]:
        """Everything with weights: the GAN's networks, the EMA and the connectors, as far as they exist."""
        extra = {"ema": self._ema, "connectors": self.connectors}
        return self.gan.networks() | {name: network for name, network in extra.items() if network is not None}

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later process needs to continue; tensors and plain values only."""
        return {
            "networks": {name: network.state_dict() for name, network in self.networks().items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "num_averaged": self.num_averaged,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict()``, after ``begin_stage`` of the same stage."""
        if "ema" not in state["networks"]:
            self._ema = None
        networks = self.networks()
        for name, weights in state["networks"].items():
            networks[name].load_state_dict(weights)
        for name, saved in state["optimizers"].items():
            self.optimizers[name].load_state_dict(saved)
        self.num_averaged = state["num_averaged"]


def _check_trainable(name: str, network: nn.Module) -> None:
    still = [path for path, parameter in network.named_parameters() if not parameter.requires_grad]
    if still:
        raise KdganError(
            f"Every parameter of a {name} that is trained needs to require a gradient",
            f"{len(still)} do not, such as {still[0]}",
            "Call requires_grad_(True), or make fixed weights buffers (register_buffer)",
        )


@contextmanager
def frozen(gan: Gan) -> Iterator[None]:
    """Freeze a GAN inside ``with``: no gradient reaches it and no buffer changes (batch norm in evaluation mode)."""
    networks = gan.networks().values()
    required = [(parameter, parameter.requires_grad) for network in networks for parameter in network.parameters()]
    with ExitStack() as stack:
        for network in networks:
            stack.enter_context(eval_mode(network))
            network.requires_grad_(False)
        try:
            yield
        finally:
            for parameter, flag in required:
                parameter.requires_grad_(flag)
