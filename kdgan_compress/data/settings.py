"""Which images an experiment is about: a source, a protocol and what the protocol takes."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdgan_compress.errors import KdganError

DEFAULT_NORMAL = {"sample": "sneaker"}
DEFAULT_OUTLIERS = 0.5
COIL100_OUTLIERS = {1: 0.5, 4: 0.25, 7: 0.15}
"""The paper's fraction for each number of normal categories."""

TAKES: dict[str, frozenset[str]] = {
    "simo": frozenset({"normal"}),
    "miso-8020": frozenset({"novel"}),
    "gpnd-5fold": frozenset({"normal", "outliers"}),
    "coil100": frozenset({"outliers", "num_categories"}),
    "ocgan-p1": frozenset({"normal"}),
}
"""The settings that each protocol has; all but ``simo`` have a trial."""

PROTOCOLS = tuple(TAKES)

INSTEAD = {
    "normal": "Leave --normal out: miso-8020 takes the class that is --novel, coil100 draws its categories by --trial",
    "novel": "Leave --novel out, or choose --protocol miso-8020",
    "outliers": "Leave --outliers out, or choose --protocol gpnd-5fold or coil100",
    "num_categories": "Leave --num-categories out, or choose --protocol coil100",
}


@dataclass(frozen=True)
class DataSettings:
    """Which images; written into every checkpoint.

    Attributes:
        source: ``sample``, ``mnist``, ``fashion-mnist``, ``cifar10``, ``coil100``, ``folder:PATH`` (MVTec's layout:
            ``train/good``, ``test/good``, ``test/<defect>``) or ``npz:PATH``.
        normal: The normal class, a number (from 0) or a name; a folder's is always ``good``.
        root: Where named sets are kept; None for the user's cache folder.
        protocol: One of ``PROTOCOLS``; a folder and ``simo`` have their own test split, the others cut a pool of all
            images.
        novel: The one novel class of ``miso-8020``, which has no ``normal``.
        trial: Number of the draw, from 0: the seed of the split. Under ``gpnd-5fold`` five trials are the five folds of
            one permutation; under ``simo`` nothing is drawn.
        outliers: Fraction of the test set that is novel, in (0, 1), under ``gpnd-5fold`` and ``coil100``; None for the
            protocol's own.
        num_categories: How many categories are normal under ``coil100``; None for 1.

    Raises:
        KdganError: No such protocol, a value out of range, or one that the protocol or the source doesn't have.
    """

    source: str = "sample"
    normal: str | None = None
    root: str | None = None
    protocol: str = "simo"
    novel: str | None = None
    trial: int = 0
    outliers: float | None = None
    num_categories: int | None = None

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise KdganError(
                "The protocol must be a known one", f"got {self.protocol!r}", f"Choose one of {', '.join(PROTOCOLS)}"
            )
        for name, instead in INSTEAD.items():
            value = getattr(self, name)
            if value is not None and name not in TAKES[self.protocol]:
                option = name.replace("_", "-")
                raise KdganError(f"The protocol {self.protocol} must have no --{option}", f"got {value}", instead)
        if self.source.startswith("folder:") and self.protocol != "simo":
            raise KdganError("A folder's protocol must be simo", f"got {self.protocol}", "Leave --protocol out")
        if self.source == "coil100" and self.protocol == "simo":
            raise KdganError(
                "COIL-100 must be split by a protocol, as it has no official test split",
                "got simo",
                "Choose --protocol coil100 or ocgan-p1",
            )
        if self.trial < 0:
            raise KdganError("The trial must be 0 or more", f"got {self.trial}", "Give --trial 0")
        if self.outliers is not None and not 0 < self.outliers < 1:
            raise KdganError(
                "The fraction of outliers must be between 0 and 1", f"got {self.outliers:g}", "Give for example 0.5"
            )
        if self.num_categories is not None and self.num_categories < 1:
            raise KdganError("The normal categories must be at least one", f"got {self.num_categories}", "Give more")

    def override(
        self,
        source: str | None,
        normal: str | None,
        root: str | None,
        *,
        protocol: str | None = None,
        novel: str | None = None,
        trial: int | None = None,
        outliers: float | None = None,
        num_categories: int | None = None,
    ) -> "DataSettings":
        """These settings with what is not None replaced.

        Another source does not keep the normal or novel class, another protocol only what it has itself.

        Raises:
            KdganError: What results doesn't fit together.
        """
        given = {
            "source": source,
            "normal": normal,
            "root": root,
            "protocol": protocol,
            "novel": novel,
            "trial": trial,
            "outliers": outliers,
            "num_categories": num_categories,
        }
        dropped = set(INSTEAD) - TAKES.get(protocol or self.protocol, frozenset())
        if source is not None:
            dropped |= {"normal", "novel"}
        changes: dict[str, Any] = dict.fromkeys(dropped)
        return replace(self, **changes | {name: value for name, value in given.items() if value is not None})

    def absolute(self) -> "DataSettings":
        """The same with absolute paths, so that they hold wherever a later command is started."""
        kind, _, path = self.source.partition(":")
        source = f"{kind}:{Path(path).expanduser().resolve()}" if path else self.source
        return replace(self, source=source, root=str(Path(self.root).expanduser().resolve()) if self.root else None)

    @property
    def name(self) -> str:
        """A short name for folders and titles: ``mnist-5``, ``bottle``, ``cifar10-not-deer-miso-8020``.

        A trial is left out where it is 0 and need not be averaged over, a fraction where it is the protocol's own.
        """
        kind, _, path = self.source.partition(":")
        base = Path(path).expanduser().resolve().stem if path else kind
        if kind == "folder":
            return base
        parts: list[str | None] = [base]
        if self.protocol == "coil100":
            number = self.num_categories or 1
            parts += [None if base == "coil100" else "coil100", f"{number}-categor{'y' if number == 1 else 'ies'}"]
        elif self.protocol == "miso-8020":
            parts += [f"not-{self.novel}" if self.novel else None, self.protocol]
        else:
            normal = self.normal or DEFAULT_NORMAL.get(kind)
            parts += [normal, None if self.protocol == "simo" else self.protocol]
        if self.outliers is not None:
            parts.append(f"outliers{100 * self.outliers:g}")
        if self.protocol in ("gpnd-5fold", "coil100") or (self.protocol != "simo" and self.trial):
            parts.append(f"trial{self.trial}")
        return "-".join(filter(None, parts))

    @property
    def outlier_fraction(self) -> float:
        """``outliers``, or the protocol's own fraction."""
        if self.outliers is not None:
            return self.outliers
        if self.protocol == "coil100":
            return COIL100_OUTLIERS.get(self.num_categories or 1, DEFAULT_OUTLIERS)
        return DEFAULT_OUTLIERS
