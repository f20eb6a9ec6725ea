"""The gate of a lower precision: no file appears unless it says what fp32 says."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from kdgan_compress.errors import KdganError, first_line
from kdgan_compress.evaluation import detection_metrics, quantile_threshold, score_spearman
from kdgan_compress.export.graph import Interface, assemble, tidy
from kdgan_compress.gans import ImageFormat
from kdgan_compress.runtime.detector import LOAD_ERRORS

MOST_AUC_LOST = 0.005
LEAST_AGREEMENT = 0.99
JUDGING_BATCH = 256


@dataclass(frozen=True, eq=False)
class Judges:
    """Images that thresholds are found on and precisions are judged by, at the network's size.

    Attributes:
        train: Normal training images, uint8 (N, S, S, C): they calibrate int8.
        normals: Normal images to find the threshold on, likewise; often the same.
        test: uint8 (M, S, S, C), M may be 0.
        test_is_anomalous: (M,) its labels.
    """

    train: NDArray[np.uint8]
    normals: NDArray[np.uint8]
    test: NDArray[np.uint8]
    test_is_anomalous: NDArray[np.bool_]

    @property
    def has_labels(self) -> bool:
        """Whether an AUC exists."""
        return bool(self.test_is_anomalous.any() and not self.test_is_anomalous.all())


@dataclass(frozen=True)
class ThresholdRule:
    """How a threshold is found.

    Attributes:
        quantile: Of the normal images' scores, in (0, 1); None for the best F1 on the labelled ones.
    """

    quantile: float | None = 0.99

    def __post_init__(self) -> None:
        if self.quantile is not None and not 0 < self.quantile < 1:
            raise KdganError("The quantile must lie between 0 and 1", f"got {self.quantile}", "0.99 is the default")

    def find(self, normal_scores: NDArray[np.float64], test_scores: NDArray[np.float64], judges: Judges) -> float:
        """The threshold, by one precision's scores."""
        if self.quantile is not None:
            return quantile_threshold(normal_scores, self.quantile)
        if not judges.has_labels:
            raise KdganError(
                "A threshold by the best F1 must have labelled images, normal and novel",
                f"found {int((~judges.test_is_anomalous).sum())} and {int(judges.test_is_anomalous.sum())}",
                "Give --data with a labelled test split, or leave the threshold to the normals' quantile",
            )
        best = detection_metrics(
            test_scores, judges.test_is_anomalous
        ).best_f1_threshold  # the lowest that is an anomaly
        below = test_scores[test_scores < best]
        return float((best + below.max()) / 2) if below.size else float(np.nextafter(np.float32(best), np.float32(-1)))

    def describe(self, judges: Judges) -> str:
        """In words."""
        if self.quantile is not None:
            return f"{self.quantile:.4g} quantile of {len(judges.normals)} normal images' scores"
        return f"best F1 on {len(judges.test)} labelled images"


@dataclass(frozen=True)
class Agreement:
    """How far a detector agrees with the fp32 one of the same model.

    Attributes:
        auc: Of this one on the test images; None without labels.
        auc_diff: This AUC minus that of fp32.
        label_agreement: Share of images (of the test, without labels of the normals) with the same verdict.
        spearman: Rank correlation of the scores of these images.
        num_images: How many these are.
    """

    auc: float | None
    auc_diff: float | None
    label_agreement: float
    spearman: float
    num_images: int

    def require(self, what: str) -> None:
        """Hold the gate.

        Raises:
            KdganError: |ΔAUC| > 0.005 where there are labels; elsewhere agreement or correlation below 0.99.
        """
        fix = "No file was written; export fp32, or distil a wider student"
        if self.auc_diff is not None:
            if abs(self.auc_diff) > MOST_AUC_LOST:
                must = f"{what} must keep the AUC of fp32 to {MOST_AUC_LOST}"
                raise KdganError(must, f"it changes by {self.auc_diff:+.4f} on {self.num_images} images", fix)
        elif min(self.label_agreement, self.spearman) < LEAST_AGREEMENT:
            raise KdganError(
                f"{what} must agree with fp32 to {LEAST_AGREEMENT} in verdicts and Spearman's correlation",
                f"got {self.label_agreement:.4f} and {self.spearman:.4f} on {self.num_images} normal images",
                fix + ", or give labelled images, so that the AUC decides",
            )


@dataclass(frozen=True, eq=False)
class Judged:
    """One precision's scores of the judges, and the threshold that follows."""

    normals: NDArray[np.float64]
    test: NDArray[np.float64]
    threshold: float


def agreement(judged: Judged, reference: Judged, judges: Judges) -> Agreement:
    """Hold a precision's scores against those of fp32, each with its own threshold."""
    ours, theirs = (judged.test, reference.test) if judges.has_labels else (judged.normals, reference.normals)
    auc = auc_diff = None
    if judges.has_labels:
        auc = detection_metrics(judged.test, judges.test_is_anomalous).auc
        auc_diff = auc - detection_metrics(reference.test, judges.test_is_anomalous).auc
    return Agreement(
        auc=auc,
        auc_diff=auc_diff,
        label_agreement=float(np.mean((ours > judged.threshold) == (theirs > reference.threshold))),
        spearman=score_spearman(ours, theirs),
        num_images=len(ours),
    )


def judge(core: ir.Model, image_format: ImageFormat, judges: Judges, rule: ThresholdRule) -> Judged:
    """Scores of the judges by a core, through the same preprocessing as in the file."""
    model = core.clone()
    assemble(model, image_format, 0.0, Interface())
    tidy(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    content = ir.to_proto(model).SerializeToString()
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except LOAD_ERRORS as error:
        raise KdganError(
            "ONNX Runtime must have the graph's operators", first_line(error), "Export fp32; no file was written"
        ) from None

    def scores(images: NDArray[np.uint8]) -> NDArray[np.float64]:
        batches = [images[i : i + JUDGING_BATCH] for i in range(0, len(images), JUDGING_BATCH)]
        parts = [session.run(["score"], {"image": batch})[0] for batch in batches]
        return np.concatenate([np.empty(0), *parts]).astype(np.float64)

    normals, test = scores(judges.normals), scores(judges.test)
    return Judged(normals, test, rule.find(normals, test, judges))
