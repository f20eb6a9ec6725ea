"""Settings of an exported detector file."""

from dataclasses import dataclass, field, replace

from kdgan_compress.errors import KdganError
from kdgan_compress.export.graph.assemble import IOSpec
from kdgan_compress.export.graph.passes import REWRITES
from kdgan_compress.export.graph.trace import OPSET
from kdgan_compress.export.precisions import DEFAULT_PRECISION, INT8_SKIPPED, Precision, find_precision


@dataclass(frozen=True)
class ExportSettings:
    """Settings of an exported detector file.

    Attributes:
        precision: A name in ``PRECISIONS``. ``fp16`` halves the bytes and suits devices that compute in half precision;
            ``int8`` quarters them and is faster unless the network is very narrow; for a Gaussian per grid position it
            becomes ``int8-weights``, which computes in fp32.
        rewrites: Names in ``REWRITES`` (graph passes) to apply; None for the default of the precision.
        latent_rank: Number of latent coordinates to keep (lossy), of a score without fitted statistics; None for all.
        rank: Number of directions to keep of a Gaussian per grid position; None for all. The file's scores are then
            exactly those of the statistics of this rank, and the report says how they differ from the model's.
        io: Inputs and outputs of the file.
        opset: Version of ONNX's operator set.
        mobile: Apply the graph passes that phones need.
    """

    precision: str = DEFAULT_PRECISION
    rewrites: frozenset[str] | None = None
    latent_rank: int | None = None
    rank: int | None = None
    io: IOSpec = field(default_factory=IOSpec)
    opset: int = OPSET
    mobile: bool = False

    def __post_init__(self) -> None:
        find_precision(self.precision)
        unknown = sorted((self.rewrites or frozenset()) - set(REWRITES))
        if unknown:
            problem = f"A rewrite must be one of {', '.join(REWRITES)}"
            raise KdganError(problem, f"got {', '.join(unknown)}", "Choose among these")

    @property
    def row(self) -> Precision:
        """The precision's row in the table."""
        return find_precision(self.precision)

    @property
    def selected_rewrites(self) -> frozenset[str]:
        """Names of the graph passes that are applied."""
        if self.rewrites is not None:
            return self.rewrites
        return frozenset(REWRITES) - (INT8_SKIPPED if self.mobile else self.row.skipped_passes)

    @property
    def is_exact(self) -> bool:
        """Whether the scores equal torch's up to rounding."""
        return self.row.convert is None and self.latent_rank is None

    @property
    def name(self) -> str:
        """Short description for messages: ``int8``, ``fp32 of rank 32``."""
        return self.precision + ("" if self.latent_rank is None else f" of rank {self.latent_rank}")

    def resolve(self, size: tuple[int, int], is_tiled: bool, has_positions: bool) -> "ExportSettings":
        """The settings with everything decided that depends on the model.

        Args:
            size: Height and width of the images that the model scores, to which shapes for phones are fixed unless an
                input size is given.
            is_tiled: Whether the model cuts photos into tiles.
            has_positions: Whether the model's score has a Gaussian per grid position.

        Raises:
            KdganError: A reconstruction of tiles is requested.
        """
        io = self.io.resolve(is_tiled)
        if self.mobile:
            io = replace(io, batch_size=1, input_size=io.input_size or size)
        magnified = self.row.magnified if has_positions else None
        return replace(self, io=io, precision=magnified or self.precision)
