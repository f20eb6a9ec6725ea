"""Reads named outputs of a network by forward hooks; connectors where two networks' outputs differ in shape.

What is distilled (z1, x̂, z2 of P-KDGAN's Fig. 3a) is read from outside, so any ``nn.Module`` can be teacher or student.
Hook failures that are usually silent raise an error: a path that names no submodule, a tap that did not fire or fired
twice in one forward pass, an output that is not a tensor or is overwritten in place after it was read.
"""

import difflib
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from kdgan_compress.errors import KdganError


class FeatureHooks:
    """A network that returns its named outputs from each forward pass.

    Hooks exist only inside ``with`` and are always removed at its end::

        with FeatureHooks(generator, {"z1": "encoder", "x_hat": "decoder", "z2": "encoder2"}) as taps:
            outputs = taps(images)  # {"z1": (B, 256), "x_hat": (B, 1, 32, 32), "z2": (B, 256)}

    Args:
        network: Any module. Compile it inside ``with``, if at all: hooks set on a module that has been compiled and
            called already are ignored by torch, and ``taps(...)`` then says that they did not fire.
        paths: Names to dotted submodule paths; the empty path is the network itself.

    Raises:
        KdganError: A path names no submodule; the message lists what there is.
    """

    def __init__(self, network: nn.Module, paths: Mapping[str, str]) -> None:
        self.network = network
        self._modules = {name: _submodule(network, name, path) for name, path in paths.items()}
        self._paths = dict(paths)
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._attached = False
        self._has_versions = True
        self._calls: dict[str, list[Any]] = {}

    def __enter__(self) -> Self:
        self._attached = True
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._recorder(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._handles:
            self._handles.pop().remove()
        self._attached, self._calls = False, {}

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Run the network once and return each tap's output.

        Raises:
            KdganError: Called outside ``with``; a tap fired not exactly once; its output is not a tensor or was
                overwritten in place before the forward pass ended.
        """
        if not self._attached:
            raise KdganError(
                "FeatureHooks are called outside `with`",
                "no hooks are attached",
                "Call them inside `with FeatureHooks(...)`",
            )
        self._calls = {name: [] for name in self._modules}
        self._has_versions = not torch.is_inference_mode_enabled()
        self.network(images)
        calls_by_tap, self._calls = self._calls, {}
        return {name: self._output(name, calls) for name, calls in calls_by_tap.items()}

    def _recorder(self, name: str) -> Any:
        def record(_module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
            if name in self._calls:
                version = output._version if self._has_versions and isinstance(output, Tensor) else None
                self._calls[name].append((output, version))

        return record

    def _output(self, name: str, calls: list[tuple[Any, int | None]]) -> Tensor:
        tap = f"Tap {name!r} ({self._paths[name]!r})"
        if len(calls) != 1:
            raise KdganError(
                f"{tap} did not fire exactly once in the forward pass",
                f"fired {len(calls)} times",
                "Tap a submodule that the forward pass calls once, through its own call and not through .forward; "
                "attach taps before this network, or one of its class, is compiled (or call torch.compiler.reset())",
            )
        output, version = calls[0]
        if not isinstance(output, Tensor):
            raise KdganError(
                f"{tap} did not return one tensor",
                f"got {type(output).__name__}",
                "Tap a submodule that returns a tensor",
            )
        if version is not None and output._version != version:
            raise KdganError(
                f"The output of {tap} changed before the end of the forward pass",
                "a later layer overwrote it in place",
                "Tap that layer instead, or build it with inplace=False",
            )
        return output


class Connectors(nn.Module):
    """1×1 convolutions that bring a student's tapped outputs to their teacher's channel counts.

    They exist where the counts differ, are trained with the student's generator and dropped after training. Vectors
    (B, C) get the 1×1 convolution's equivalent, a linear map. x̂ of a student of smaller images is only enlarged.

    Args:
        student: Example outputs of the student, name to tensor (B, C, ...).
        teacher: The teacher's for the same images.

    Raises:
        KdganError: The shapes differ in more than the channels.
    """

    def __init__(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.maps = nn.ModuleDict()
        for name in (name for name in student if name in teacher):
            shape, target = student[name].shape, teacher[name].shape
            if shape == target:
                continue
            if name == "x_hat" and _is_smaller_image(shape, target):
                self.maps[_key(name)] = nn.Upsample(tuple(target[2:]), mode="bilinear", align_corners=False)
                continue
            if shape[:1] != target[:1] or shape[2:] != target[2:] or len(shape) not in (2, 4):
                raise KdganError(
                    f"Teacher and student differ in {name} by more than the channels",
                    f"got {tuple(target)} and {tuple(shape)}",
                    "Build both for one image size, or tap layers of one height and width",
                )
            self.maps[_key(name)] = (
                nn.Linear(shape[1], target[1], bias=False)
                if len(shape) == 2
                else nn.Conv2d(shape[1], target[1], 1, bias=False)
            )

    def forward(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The student's outputs, each in its teacher's shape."""
        return {
            name: self.maps[_key(name)](output) if _key(name) in self.maps else output
            for name, output in outputs.items()
        }


def _is_smaller_image(shape: torch.Size, target: torch.Size) -> bool:
    """Whether images (B, C, S, S) are like larger ones (B, C, T, T)."""
    if shape[:2] != target[:2] or not len(shape) == len(target) == 4:
        return False
    return shape[2] == shape[3] < target[2] == target[3]


def _key(name: str) -> str:
    """A tap's name as a key of ``nn.ModuleDict``, which allows no dots."""
    return name.replace(".", "/")


def _submodule(network: nn.Module, name: str, path: str) -> nn.Module:
    try:
        return network.get_submodule(path)
    except AttributeError:
        paths = [known for known, _ in network.named_modules() if known]
        matches = difflib.get_close_matches(path, paths, n=1)
        raise KdganError(
            f"Tap {name!r} does not name a submodule",
            f"got {path!r}, there are {', '.join(paths) or 'none'}",
            f"Choose one of them{f', perhaps {matches[0]!r}' if matches else ''}",
        ) from None
