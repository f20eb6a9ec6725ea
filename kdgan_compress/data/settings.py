"""Which images an experiment uses: a source, a protocol and the protocol's settings."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from kdgan_compress.data.protocols import check_fraction
from kdgan_compress.data.sources import SOURCES, Source
from kdgan_compress.data.tiles import TileGrid, TileSettings
from kdgan_compress.errors import KdganError
from kdgan_compress.files import expand_user

DEFAULT_OUTLIERS = 0.5
COIL100_OUTLIERS = {1: 0.5, 4: 0.25, 7: 0.15}
"""The paper's fraction for each number of normal categories."""

PROTOCOL_FIELDS: dict[str, frozenset[str]] = {
    "simo": frozenset({"normal"}),
    "miso-8020": frozenset({"novel"}),
    "miso-leaky": frozenset({"novel"}),
    "gpnd-5fold": frozenset({"normal", "outliers"}),
    "coil100": frozenset({"outliers", "num_categories"}),
    "ocgan-p1": frozenset({"normal"}),
}
"""The settings of each protocol; all but ``simo`` also have a trial."""

PROTOCOLS = tuple(PROTOCOL_FIELDS)
MISO_PROTOCOLS = ("miso-8020", "miso-leaky")
"""They have a novel class in place of a normal one, and train on the same images."""

FIELD_HINTS = {
    "normal": "Leave out --normal: in miso-8020 every class but --novel is normal, coil100 selects by --trial",
    "novel": "Leave out --novel, or choose --protocol miso-8020",
    "outliers": "Leave out --outliers, or choose --protocol gpnd-5fold or coil100",
    "num_categories": "Leave out --num-categories, or choose --protocol coil100",
}


@dataclass(frozen=True)
class DataSettings:
    """Which images an experiment uses; written into every checkpoint.

    Attributes:
        source: ``NAME`` or ``NAME:PATH`` of a source in ``SOURCES``, such as ``mnist`` or ``folder:PATH``.
        normal: The normal class, a number (from 0) or a name; for a folder always ``good``.
        root: Where named data sets are; None for the user's cache folder.
        protocol: One of ``PROTOCOLS``. ``simo`` uses the official test split, the others split a pool of all images.
        novel: The one novel class of ``miso-8020`` and ``miso-leaky``, which have no ``normal``.
        trial: Index of the random split, from 0. In ``gpnd-5fold``, five trials are the five folds of one permutation;
            in ``simo`` nothing is random.
        outliers: Fraction of outliers in the test set, in (0, 1), for ``gpnd-5fold`` and ``coil100``; None for the
            protocol's default.
        num_categories: Number of normal categories in ``coil100``; None for 1.
        tiles: How photos are cut into tiles; None if whole images are brought to the network's size. A mapping of its
            attributes is accepted.

    Raises:
        KdganError: Unknown protocol, a value out of range, or one that does not apply to the protocol or the source.
    """

    source: str = "sample"
    normal: str | None = None
    root: str | None = None
    protocol: str = "simo"
    novel: str | None = None
    trial: int = 0
    outliers: float | None = None
    num_categories: int | None = None
    tiles: TileSettings | None = None

    def __post_init__(self) -> None:
        if isinstance(self.tiles, dict):
            object.__setattr__(self, "tiles", TileSettings(**self.tiles))
        if "\0" in f"{self.source}{self.root}":
            raise KdganError("The path of the data must not contain a NUL character", repr(self.source), "Remove it")
        if self.protocol not in PROTOCOLS:
            hint = f"Choose one of {', '.join(PROTOCOLS)}"
            raise KdganError("The protocol must be a known one", f"got {self.protocol!r}", hint)
        for name, hint in FIELD_HINTS.items():
            value = getattr(self, name)
            if value is not None and name not in PROTOCOL_FIELDS[self.protocol]:
                option = name.replace("_", "-")
                raise KdganError(f"--{option} does not apply to protocol {self.protocol}", f"got {value}", hint)
        self._check_source()
        if self.trial < 0:
            raise KdganError("The trial must be 0 or more", f"got {self.trial}", "Give --trial 0")
        if self.outliers is not None:
            check_fraction(self.outliers)
        if self.num_categories is not None and self.num_categories < 1:
            hint = "Give a larger --num-categories"
            raise KdganError("At least one category must be normal", f"got {self.num_categories}", hint)

    def _check_source(self) -> None:
        """Check the settings against the kind of source; an unknown one is reported when it is opened."""
        kind, name = _kind(self.source), self.source.partition(":")[0]
        if self.protocol == "simo" and not kind.has_test_split:
            hint = f"Choose --protocol {', '.join(PROTOCOLS[1:-1])} or {PROTOCOLS[-1]}"
            raise KdganError("Protocol simo needs an official test split", f"{name} has none", hint)
        if self.protocol != "simo" and kind.is_presplit:
            problem = f"The protocol of a {name} must be simo"
            raise KdganError(problem, f"got {self.protocol}", "Leave out --protocol")
        if kind.is_presplit and self.normal not in (None, kind.default_normal):
            problem = f"The normal class of a {name} must be {kind.default_normal}"
            raise KdganError(problem, f"got --normal {self.normal}", "Leave out --normal")

    def override(
        self, source: str | None = None, normal: str | None = None, root: str | None = None, **others: Any
    ) -> "DataSettings":
        """A copy with the values that are not None replaced; ``others`` are the other attributes.

        Another source clears the normal and the novel class, another protocol clears what does not apply to it.
        """
        given = {"source": source, "normal": normal, "root": root, **others}
        given = {name: value for name, value in given.items() if value is not None}
        cleared = set(FIELD_HINTS) - PROTOCOL_FIELDS.get(given.get("protocol", self.protocol), frozenset())
        if source not in (None, self.source):
            cleared |= {"normal", "novel"}
        changes: dict[str, Any] = dict.fromkeys(cleared) | given
        return replace(self, **changes)

    def relocate(self, source: str | None, root: str | None) -> "DataSettings":
        """A copy that reads the same classes from another source or root; None keeps the present one."""
        source = source or self.source
        normal = None if _kind(source).is_presplit else self.normal
        return replace(self, source=source, root=root or self.root, normal=normal)

    def absolute(self) -> "DataSettings":
        """A copy with absolute paths, which stay valid in any working directory."""
        return self.with_paths(lambda path: str(expand_user(path).resolve()))

    def with_paths(self, convert: Callable[[str], str]) -> "DataSettings":
        """A copy with the paths of its source and root converted."""
        kind, _, path = self.source.partition(":")
        source = f"{kind}:{convert(path)}" if path else self.source
        return replace(self, source=source, root=convert(self.root) if self.root else None)

    @property
    def name(self) -> str:
        """A short name for folders and titles: ``mnist-5``, ``bottle``, ``cifar10-not-deer-miso-8020``.

        It leaves out trial 0, except in protocols that average over trials, and the protocol's default fraction.
        """
        kind = _kind(self.source)
        name, _, path = self.source.partition(":")
        base = expand_user(path).resolve().stem if path else name
        if kind.is_presplit:
            return base
        parts: list[str | None] = [base]
        if self.protocol == "coil100":
            number = self.num_categories or 1
            parts += [None if base == "coil100" else "coil100", f"{number}-categor{'y' if number == 1 else 'ies'}"]
        elif self.protocol in MISO_PROTOCOLS:
            parts += [f"not-{self.novel}" if self.novel else None, self.protocol]
        else:
            parts += [self.normal or kind.default_normal, None if self.protocol == "simo" else self.protocol]
        if self.outliers is not None:
            parts.append(f"outliers{100 * self.outliers:g}")
        if self.protocol in ("gpnd-5fold", "coil100") or (self.protocol != "simo" and self.trial):
            parts.append(f"trial{self.trial}")
        return "-".join(filter(None, parts))

    @property
    def used_tiles(self) -> TileSettings | None:
        """``tiles``, or None if they are switched off."""
        return self.tiles if self.tiles is not None and self.tiles.enabled else None

    def grid(self, tile: int) -> TileGrid | None:
        """How photos are cut into tiles of this side; None without tiles."""
        return None if self.used_tiles is None else self.used_tiles.grid(tile)

    @property
    def outlier_fraction(self) -> float:
        """``outliers``, or the protocol's default fraction."""
        default = COIL100_OUTLIERS.get(self.num_categories or 1, DEFAULT_OUTLIERS)  # 0.5 without num_categories
        return default if self.outliers is None else self.outliers


def _kind(source: str) -> type[Source]:
    """The class of a source; ``Source`` itself, with its defaults, if it is unknown."""
    return SOURCES.get(source.partition(":")[0], Source)
