"""Change an existing model card when its detector gets another threshold; imports neither torch nor onnx."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from kdgan_compress.errors import KdganError


@dataclass(frozen=True)
class CardEntries:
    """What a card says about a detector file that changes with its threshold.

    Attributes:
        name: File name of the detector.
        size_bytes: Its size.
        threshold: Its default threshold.
        threshold_rule: How the threshold was set.
        file_sha256: Its checksum.
        card: File name of the card.
    """

    name: str
    size_bytes: int
    threshold: float
    threshold_rule: str
    file_sha256: str
    card: str

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts of the card that contain these values, except for the names."""
        return (
            f"| file size | {self.size_bytes:,} bytes |",
            f"| threshold | {self.threshold:.6g}: {self.threshold_rule} |",
            f"let isAnomaly = score > {self.threshold:.9g}",
            f"file_sha256     {self.file_sha256}",
        )


def read_detector_name(card: str) -> str:
    """The file name of the detector that a card describes.

    Raises:
        KdganError: The text is not a card of this package.
    """
    title = re.match(r"# ([^/\\\n]+\.onnx)\n", card)
    if title is None or "\n## Latency\n" not in card:
        raise KdganError(
            "The card must be a model card that `kdgan-compress export` wrote",
            "it has no title with the name of a detector, or no section Latency",
            "Give the card.md that was written with the detector",
        )
    return title[1]


def update_card(card: str, old: CardEntries, new: CardEntries, files: Mapping[str, str]) -> str:
    """Write another threshold, name and checksum into a card.

    Args:
        card: The card of the old detector.
        old: What it says about the old detector.
        new: What it will say.
        files: Old → new names of the other files; files in the card that are not among them are left out.

    Raises:
        KdganError: The card is not the old detector's, or was edited.
    """
    for before, after in zip(old.texts, new.texts, strict=True):
        if before not in card:
            hint = "Keep the card that was written with the detector"
            raise KdganError("The card must be the detector's", f"it does not contain {before!r}", hint)
        card = card.replace(before, after)
    card = card.replace("% of decisions equal, ", "% of decisions equal at the exported threshold, ")
    card = re.sub(rf"(?<![\w.-]){re.escape(old.name)}", lambda _: new.name, card)
    before, after = (f'forResource: "{name.removesuffix(".onnx")}"' for name in (old.name, new.name))
    card = card.replace(before, after).replace(f"--card {old.card}\n", f"--card {new.card}\n")
    return re.sub(r"^- `([^`]+)`: (.*)\n", lambda line: _file_line(line, new.name, files), card, flags=re.MULTILINE)


def _file_line(line: re.Match[str], detector: str, files: Mapping[str, str]) -> str:
    name = files.get(line[1], detector if line[1] == detector else None)
    return "" if name is None else f"- `{name}`: {line[2]}\n"
