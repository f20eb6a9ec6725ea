"""Stacking: K networks of one shape as one network of grouped layers, whose channels are those of all members in turn.

A convolution becomes one with ``groups=K``, a norm layer one of K times the channels. Any network will do that consists
of the layers in ``STACKED_LAYERS`` and ``CHANNELWISE_LAYERS`` and treats channels alike; ``check_stack`` compares the
stack with its members.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from kdgan_compress.accel.layers import Conv2d, ConvTranspose2d, InstanceNorm2d
from kdgan_compress.errors import KdganError

STACK_RTOL = 0.05
"""Largest difference between a stack's outputs and its members', relative to the largest output. A network that cannot
be stacked differs by far more, TF32 on a GPU by less."""


class StackedBatchNorm2d(nn.Module):
    """Batch norm of K members whose batches may be padded: (B, K · C, H, W) → the same.

    Attributes:
        sample_weights: (B, K) each member's weights of the B samples, columns summing to 1; None where no batch is
            padded. Padding has weight 0 and changes no statistics.
        num_batches_tracked: (K,).
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, layer: nn.BatchNorm2d, num_members: int) -> None:
        super().__init__()
        size = num_members * layer.num_features
        self.eps, self.momentum, self.num_members = layer.eps, layer.momentum, num_members
        self.weight, self.bias = nn.Parameter(torch.empty(size)), nn.Parameter(torch.empty(size))
        self.register_buffer("running_mean", torch.empty(size))
        self.register_buffer("running_var", torch.empty(size))
        self.register_buffer("num_batches_tracked", torch.empty(num_members))
        self.sample_weights: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        if not self.training or self.sample_weights is None:
            if self.training:
                self.num_batches_tracked += 1
            return batch_norm(
                images,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                training=self.training,
                momentum=self.momentum or 0.0,
                eps=self.eps,
            )
        return self._weighted(images, self.sample_weights)

    def _weighted(self, images: Tensor, sample_weights: Tensor) -> Tensor:
        members = images.unflatten(1, (self.num_members, -1))
        weights = (sample_weights / images[0, 0].numel())[:, :, None, None, None].to(images.dtype)
        mean = (weights * members).sum((0, 3, 4))
        centred = members - mean[..., None, None]
        var = (weights * centred.square()).sum((0, 3, 4))
        with torch.no_grad():
            count = (sample_weights > 0).sum(0)[:, None] * images[0, 0].numel()
            momentum = self.momentum or 0.0
            self.running_mean.lerp_(mean.flatten(), momentum)
            self.running_var.lerp_((var * count / (count - 1)).flatten(), momentum)
            self.num_batches_tracked += 1
        scale = self.weight * (var.flatten() + self.eps).rsqrt()
        output: Tensor = centred.flatten(1, 2) * scale[:, None, None] + self.bias[:, None, None]
        return output


def _stacked_convolution(kind: type[nn.Module]) -> Callable[[Any, int], nn.Module]:
    def stacked(layer: Any, num_members: int) -> nn.Module:
        return kind(
            num_members * layer.in_channels,
            num_members * layer.out_channels,
            layer.kernel_size,
            stride=layer.stride,
            padding=layer.padding,
            groups=num_members * layer.groups,
            bias=layer.bias is not None,
        )

    return stacked


def _stacked_instance_norm(layer: nn.InstanceNorm2d, num_members: int) -> nn.Module:
    return InstanceNorm2d(num_members * layer.num_features, eps=layer.eps, affine=layer.affine)


STACKED_LAYERS: dict[type[nn.Module], Callable[[Any, int], nn.Module]] = {
    nn.Conv2d: _stacked_convolution(Conv2d),
    nn.ConvTranspose2d: _stacked_convolution(ConvTranspose2d),
    nn.InstanceNorm2d: _stacked_instance_norm,
    nn.BatchNorm2d: StackedBatchNorm2d,
}

CHANNELWISE_LAYERS = (
    *(nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.ReLU6, nn.Tanh, nn.Sigmoid, nn.Identity, nn.Flatten),
    *(nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.Upsample, nn.UpsamplingNearest2d, nn.ZeroPad2d),
)


def stack_networks(networks: Sequence[nn.Module]) -> nn.Module:
    """One network that computes what K networks of one shape do: (B, K · C, …) → (B, K · n, …).

    Raises:
        KdganError: A layer has no stacked form, or the networks differ in shape.
    """
    weights = stack_weights(networks)
    with torch.device("meta"):  # the weights are assigned below
        stacked = _stack_module(networks[0], len(networks))
    stacked.load_state_dict(weights, assign=True)
    return stacked.train(networks[0].training)


def _stack_module(module: nn.Module, num_members: int) -> nn.Module:
    if (make := STACKED_LAYERS.get(type(module))) is not None and _is_plain(module):
        return make(module, num_members)
    if not _is_channelwise(module):
        raise KdganError(
            "Models are trained together only if every layer has a stacked form",
            f"found {type(module).__name__}",
            "Train them one after the other (--fleet 1)",
        )
    copied = copy.copy(module)
    copied.__dict__ = {
        name: copy.copy(value) if isinstance(value, dict) else value for name, value in vars(module).items()
    }
    for name, child in module._modules.items():
        copied._modules[name] = None if child is None else _stack_module(child, num_members)
    return copied


def can_be_stacked(network: nn.Module) -> bool:
    """Whether every layer of a network has a stacked form."""
    layers = network.modules()
    return all((type(layer) in STACKED_LAYERS and _is_plain(layer)) or _is_channelwise(layer) for layer in layers)


def _is_channelwise(module: nn.Module) -> bool:
    """Whether a module without its children has no weights and, as far as its class says, treats channels alike."""
    holds_weights = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    is_leaf = type(module).__module__.startswith("torch.nn") and not list(module.children())
    return not holds_weights and (not is_leaf or isinstance(module, CHANNELWISE_LAYERS))


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer has none of the options that its stacked form lacks."""
    if isinstance(layer, nn.BatchNorm2d):
        return layer.affine and layer.track_running_stats and layer.momentum is not None
    if isinstance(layer, nn.InstanceNorm2d):
        return not layer.track_running_stats
    return (
        isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
        and isinstance(layer.padding, tuple)
        and layer.padding_mode == "zeros"
        and layer.dilation == (1, 1)
        and layer.output_padding == (0, 0)
    )


def stack_weights(networks: Sequence[nn.Module]) -> dict[str, Tensor]:
    """The state dict of a stack, from its members'.

    Raises:
        KdganError: The members differ in shape.
    """
    states = [network.state_dict() for network in networks]
    shapes = [{name: tuple(weight.shape) for name, weight in state.items()} for state in states]
    for member, member_shapes in enumerate(shapes):
        if member_shapes != shapes[0]:
            name = next(n for n in [*shapes[0], *member_shapes] if member_shapes.get(n) != shapes[0].get(n))
            first, other = (shape.get(name, "missing") for shape in (shapes[0], member_shapes))
            raise KdganError(
                "Members of a fleet differ in shape",
                f"{name} is {first} in member 0 and {other} in member {member}",
                "Give them one family, image format, latent size, norm and channels",
            )
    return {name: torch.cat([torch.atleast_1d(state[name]) for state in states]) for name in states[0]}


def unstack_weights(stacked: nn.Module, networks: Sequence[nn.Module | None]) -> None:
    """Write a stack's weights back into its members; None is skipped."""
    states = [None if network is None else network.state_dict() for network in networks]
    for name, weights in stacked.state_dict().items():
        for state, part in zip(states, weights.chunk(len(networks)), strict=True):
            if state is not None:
                state[name].copy_(part.reshape(state[name].shape))


def to_grouped(samples: Tensor, num_members: int) -> Tensor:
    """Samples of all members in turn (B · K, C, …) as a stack takes them, (B, K · C, …)."""
    return samples.reshape(-1, num_members * samples.shape[1], *samples.shape[2:])


def to_samples(grouped: Tensor, num_members: int) -> Tensor:
    """A stack's output (B, K · n, …) as samples of all members in turn (B · K, n, …); (B · K,) stays as it is."""
    if grouped.dim() == 1:
        return grouped
    return grouped.reshape(-1, grouped.shape[1] // num_members, *grouped.shape[2:])


class PerSample(nn.Module):
    """A stack that takes and returns samples: (B · K, C, …) → a tensor or a tuple of them, (B · K, n, …)."""

    def __init__(self, stacked: nn.Module, num_members: int) -> None:
        super().__init__()
        self.stacked, self.num_members = stacked, num_members

    def forward(self, samples: Tensor) -> Any:
        outputs = self.stacked(to_grouped(samples, self.num_members))
        if isinstance(outputs, Tensor):
            return to_samples(outputs, self.num_members)
        return tuple(output if output is None else to_samples(output, self.num_members) for output in outputs)


def check_stack(stacked: nn.Module, networks: Sequence[nn.Module], samples: Tensor) -> None:
    """Check that a stack computes what its first and last members do.

    Args:
        stacked: From ``stack_networks``, in evaluation mode like the networks.
        networks: Its K members.
        samples: Images of all members in turn, (B · K, C, S, S).

    Raises:
        KdganError: It does not, as where a network mixes its channels outside its layers.
    """
    with torch.no_grad():
        outputs = PerSample(stacked, len(networks))(samples)
        expected = {k: networks[k](samples[k :: len(networks)]) for k in (0, len(networks) - 1)}
    for member, output in expected.items():
        pairs = zip(_tensors(outputs), _tensors(output), strict=True)
        for actual, single in ((whole[member :: len(networks)], single) for whole, single in pairs):
            same_shape = actual.shape == single.shape
            if not same_shape or float((actual - single).abs().max()) > STACK_RTOL * float(single.abs().max()):
                raise KdganError(
                    "Models are trained together only if they can be stacked",
                    "the stacked network computes something else",
                    "Train them one after the other (--fleet 1)",
                )


def _tensors(outputs: Any) -> list[Tensor]:
    values = [outputs] if isinstance(outputs, Tensor) else outputs
    return [value for value in values if isinstance(value, Tensor)]
