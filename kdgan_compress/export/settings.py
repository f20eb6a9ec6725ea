"""What kind of detector file to write."""

from dataclasses import dataclass, field
from typing import Literal

from kdgan_compress.errors import KdganError
from kdgan_compress.export.core import OPSET
from kdgan_compress.export.graph import Interface
from kdgan_compress.export.rewrites import REWRITES

Precision = Literal["fp32", "fp16", "int8"]

FOR_FLOATS = frozenset(REWRITES) - {"conv-transpose", "score"}
"""Floats on a CPU pay for the 2.25 times arithmetic of split transposed convolutions, and for a norm in four steps."""

FOR_BYTES = frozenset(REWRITES) - {"difference", "opening"}
"""What int8 and phones take. ONNX Runtime has no int8 product that takes a computed float along, Core ML not the Pad
that ``difference`` needs, and as an int8 product the opening takes 30 times as long as a convolution."""


@dataclass(frozen=True)
class ExportSettings:
    """What kind of file to write.

    Attributes:
        precision: ``fp32``; ``fp16``: half the bytes, for devices that compute so; ``int8``: a quarter, and faster
            wherever the network isn't too narrow.
        rewrites: Names in ``REWRITES``; None for those that help.
        latent_rank: Keep that many coordinates of the latent, at a loss; None for all.
        interface: What the file takes and gives.
        opset: Of ONNX's own operators.
        mobile: Take the rewrites that phones need.
    """

    precision: Precision = "fp32"
    rewrites: frozenset[str] | None = None
    latent_rank: int | None = None
    interface: Interface = field(default_factory=Interface)
    opset: int = OPSET
    mobile: bool = False

    def __post_init__(self) -> None:
        unknown = sorted((self.rewrites or frozenset()) - set(REWRITES))
        if unknown:
            raise KdganError(
                f"A rewrite must be one of {', '.join(REWRITES)}", f"got {', '.join(unknown)}", "Name those"
            )

    @property
    def chosen_rewrites(self) -> frozenset[str]:
        """Those that are made."""
        if self.rewrites is not None:
            return self.rewrites
        return FOR_BYTES if self.mobile or self.precision == "int8" else FOR_FLOATS

    @property
    def is_exact(self) -> bool:
        """Whether scores are torch's to rounding."""
        return self.precision == "fp32" and self.latent_rank is None

    @property
    def name(self) -> str:
        """In a word or two: ``int8``, ``fp32 of rank 32``."""
        return self.precision + ("" if self.latent_rank is None else f" of rank {self.latent_rank}")
