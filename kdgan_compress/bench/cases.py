"""The cases of the benchmark: which model is trained or scored, and by which paths."""

from dataclasses import dataclass

TEACHER = (64, 128, 256)
TRAIN_PATHS = ("plain", "engine", "fleet 10", "fleet 30")
DISTILL_PATHS = ("plain", "engine", "cache", "fleet 10", "fleet 30")


@dataclass(frozen=True)
class Case:
    """A model and a batch size, and the paths that are compared on it.

    Attributes:
        work: ``train`` or ``infer``.
        family: Of the model, and of its teacher.
        structure: ``scratch`` (no teacher), the number of a structure, or ``score``.
        channels: Channels of the model.
        batch: Batch size.
        paths: ``plain`` (a reference loop on torch's layers), ``engine``, ``cache`` (engine with a teacher cache) and
            ``fleet K`` (K models together; with a cache where the teacher is frozen).
    """

    work: str
    family: str
    structure: str
    channels: tuple[int, ...]
    batch: int
    paths: tuple[str, ...]

    @property
    def channels_str(self) -> str:
        """The channels as text, such as ``2-4-8``."""
        return "-".join(map(str, self.channels))

    def fleet(self, path: str) -> int:
        """Number of models that a path trains together."""
        return int(path.partition(" ")[2] or 1)


CASES = (
    *(Case("train", "ede", "scratch", TEACHER, batch, TRAIN_PATHS) for batch in (1, 8)),
    *(Case("train", "ede", "2", (8, 16, 64), batch, DISTILL_PATHS) for batch in (1, 8)),
    *(Case("train", "ede", "2", (2, 4, 8), batch, DISTILL_PATHS) for batch in (1, 8, 16)),
    *(Case("train", "ede", "2", (1, 2, 4), batch, DISTILL_PATHS) for batch in (1, 8)),
    Case("train", "ede", "3", (2, 4, 8), 16, ("plain", "engine")),
    Case("train", "cvgad", "scratch", TEACHER, 64, ("plain", "engine")),
    Case("train", "cvgad", "scratch", (16, 32, 64), 64, ("plain", "engine")),
    *(
        Case("infer", "ede", "score", channels, batch, ("plain", "engine"))
        for channels in (TEACHER, (8, 16, 64), (2, 4, 8), (1, 2, 4))
        for batch in (1, 8)
    ),
)
