"""The files next to a detector: model card, golden vectors and, for phones, ONNX Runtime's own format."""

import dataclasses
from pathlib import Path

from kdgan_compress.export.detector_file import ExportReport
from kdgan_compress.export.packaging.card import ModelCardData, write_card
from kdgan_compress.export.packaging.mobile import write_ort
from kdgan_compress.export.validation.golden import write_golden
from kdgan_compress.runtime import Detector


def write_sidecars(path: Path, prefix: str, report: ExportReport, data: ModelCardData, mobile: bool) -> list[str]:
    """Write all other files to the folder of the detector ``path``; returns their names, the card last."""
    card, npz, as_json = (prefix + name for name in ("card.md", "golden.npz", "golden.json"))
    detector = Detector(path)
    golden = write_golden(path.with_name(npz), path.with_name(as_json), detector, path.name)
    files = {
        npz: "golden vectors for NumPy: images and the scores they must get",
        as_json: "the same for every other language, pixels as base64",
    }
    if mobile:
        ort, config = f"{path.stem}.ort", f"{path.stem}.required_operators.config"
        write_ort(path, path.with_name(ort), path.with_name(config))
        files[ort] = "the detector in ONNX Runtime's own format, optimised for ARM"
        files[config] = "the operators that a reduced build of ONNX Runtime needs for it"
    text = write_card(path.name, detector, report, dataclasses.replace(data, card=card, files=files), golden)
    path.with_name(card).write_text(text, encoding="utf-8")
    return [*files, card]
