"""The accuracy gate: a lossy export is rejected unless its results agree with those of fp32."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from kdgan_compress.data import Split
from kdgan_compress.errors import KdganError
from kdgan_compress.evaluation import detection_metrics, quantile_threshold, score_spearman
from kdgan_compress.export.graph.assemble import IOSpec, add_pre_and_postprocessing, canonicalize_names
from kdgan_compress.export.precisions import GateLimits
from kdgan_compress.gans import ImageFormat
from kdgan_compress.runtime.session import create_session

BATCH_PIXELS = 256 * 32 * 32


@dataclass(frozen=True, eq=False)
class ValidationData:
    """Images that calibrate a precision, set its threshold and validate it: at the network's size, or photos.

    Attributes:
        train: Normal training images, uint8 (N, S, S, C) or photos (N, H, W, C): they calibrate int8.
        normals: Normal images that set the threshold, same format; may be the training images.
        test: Test images, uint8 (M, S, S, C) or (M, H, W, C); M may be 0.
        test_is_anomalous: (M,) bool, their labels.
        in_fit: Whether the score's statistics were fitted to ``normals``. Then their scores are lower than those of
            other normal images, and thresholds are set by how the scores changed (``raise_to_held_out``).
    """

    train: NDArray[np.uint8]
    normals: NDArray[np.uint8]
    test: NDArray[np.uint8]
    test_is_anomalous: NDArray[np.bool_]
    in_fit: bool = False

    @classmethod
    def from_split(cls, split: Split, is_fitted: bool = False) -> "ValidationData":
        """The images of a split; ``is_fitted``: the score has statistics that were fitted to its normal images."""
        train, normals, test = (
            images.permute(0, 2, 3, 1).contiguous().numpy() for images in (split.normals, split.calibration, split.test)
        )
        return cls(train, normals, test, split.test_is_anomalous, is_fitted and not split.has_holdout)

    @property
    def has_labels(self) -> bool:
        """Whether the test images have both labels, so that an AUC exists."""
        return bool(self.test_is_anomalous.any() and not self.test_is_anomalous.all())


@dataclass(frozen=True)
class ThresholdRule:
    """How a threshold is set.

    Attributes:
        quantile: Quantile of the normal images' scores, in (0, 1); None for the best F1 on the labelled images.
    """

    quantile: float | None = 0.99

    def __post_init__(self) -> None:
        if self.quantile is not None and not 0 < self.quantile < 1:
            raise KdganError("The quantile must be between 0 and 1", f"got {self.quantile}", "0.99 is the default")

    def find(self, normal_scores: NDArray[np.float64], test_scores: NDArray[np.float64], data: ValidationData) -> float:
        """Compute the threshold from the scores of the normal images and of the test images.

        Raises:
            KdganError: The rule needs labels and there are none.
        """
        if self.quantile is not None:
            return quantile_threshold(normal_scores, self.quantile)
        if not data.has_labels:
            problem = "A threshold by best F1 needs labelled images, normal and anomalous"
            found = f"there are {int((~data.test_is_anomalous).sum())} and {int(data.test_is_anomalous.sum())}"
            hint = "Give --data with a labelled test split, or set the threshold by --quantile"
            raise KdganError(problem, found, hint)
        best = detection_metrics(test_scores, data.test_is_anomalous).best_f1_threshold  # lowest score of an anomaly
        below = test_scores[test_scores < best]
        return float((best + below.max()) / 2) if below.size else float(np.nextafter(np.float32(best), np.float32(-1)))

    def describe(self, data: ValidationData) -> str:
        """The rule as text, for the metadata."""
        if self.quantile is not None:
            raised = ", raised to the level of images outside the fit" if data.in_fit else ""
            return f"{self.quantile:.4g} quantile of {len(data.normals)} normal images' scores{raised}"
        return f"best F1 on {len(data.test)} labelled images"


@dataclass(frozen=True)
class Agreement:
    """How well a lossy export agrees with the fp32 export of the same model.

    Attributes:
        auc: AUC on the test images; None without labels.
        auc_diff: This AUC minus that of fp32; None without labels.
        label_agreement: Fraction of images with the same decision: of the test images or, without labels, the normals.
        spearman: Rank correlation of the scores of these images.
        num_images: Number of these images.
    """

    auc: float | None
    auc_diff: float | None
    label_agreement: float
    spearman: float
    num_images: int

    def check(self, name: str, limits: GateLimits) -> None:
        """Check the limits: |ΔAUC| with labels; without labels, equal decisions and rank correlation.

        Raises:
            KdganError: A limit is exceeded; ``name`` says which export.
        """
        hint = "No file was written; export fp32, or distil a wider student"
        if self.auc_diff is not None:
            if abs(self.auc_diff) > limits.max_auc_drop:
                found = f"it changes by {self.auc_diff:+.4f} on {self.num_images} images"
                raise KdganError(f"{name} must keep the AUC of fp32 to {limits.max_auc_drop}", found, hint)
        elif min(self.label_agreement, self.spearman) < limits.min_agreement:
            found = f"got {self.label_agreement:.4f} and {self.spearman:.4f} on {self.num_images} normal images"
            raise KdganError(
                f"{name} must agree with fp32 to {limits.min_agreement} in decisions and Spearman's correlation",
                found,
                f"{hint}, or give labelled images, so that the AUC is compared instead",
            )


@dataclass(frozen=True, eq=False)
class ValidationScores:
    """Scores of the validation data by one core."""

    normals: NDArray[np.float64]
    test: NDArray[np.float64]


def measure_agreement(
    scores: ValidationScores, reference: ValidationScores, thresholds: tuple[float, float], data: ValidationData
) -> Agreement:
    """Compare scores with those of a reference, each with its own threshold."""
    changed, exact, auc, auc_diff = scores.normals, reference.normals, None, None
    if data.has_labels:
        changed, exact = scores.test, reference.test
        auc = detection_metrics(scores.test, data.test_is_anomalous).auc
        auc_diff = auc - detection_metrics(reference.test, data.test_is_anomalous).auc
    return Agreement(
        auc=auc,
        auc_diff=auc_diff,
        label_agreement=float(np.mean((changed > thresholds[0]) == (exact > thresholds[1]))),
        spearman=score_spearman(changed, exact),
        num_images=len(changed),
    )


def raise_to_held_out(scores: NDArray[np.float64], exact: NDArray[np.float64], threshold: float) -> NDArray[np.float64]:
    """Raise scores of normal images to the level of images outside the fit.

    A score's statistics fit the images that they were fitted to too well, so these images' scores are too low for a
    threshold. The model's own threshold was found without this error, as the 99 % quantile of scores outside the fit;
    how far it lies above the 99 % quantile of the scores inside says how much to raise these.

    Args:
        scores: By the changed score.
        exact: The same images' scores by the unchanged model.
        threshold: The unchanged model's threshold.
    """
    quantile = quantile_threshold(exact)
    if threshold > 0 and quantile > 0:
        return scores * (threshold / quantile)
    return scores + (threshold - quantile)  # a negative log-likelihood may have either sign


def score_validation_data(core: ir.Model, image_format: ImageFormat, data: ValidationData) -> ValidationScores:
    """Score the validation data with a core, through the same preprocessing as in the exported file.

    Raises:
        KdganError: ONNX Runtime cannot run the core.
    """
    model = core.clone()
    add_pre_and_postprocessing(model, image_format, 0.0, IOSpec(anomaly_map=False))
    canonicalize_names(model)
    session = create_session(ir.to_proto(model).SerializeToString())

    def scores(images: NDArray[np.uint8]) -> NDArray[np.float64]:
        number = max(1, BATCH_PIXELS // max(1, images[:1, :, :, 0].size))
        batches = [images[i : i + number] for i in range(0, len(images), number)]
        parts = [session.run(["score"], {"image": batch})[0] for batch in batches]
        return np.concatenate([np.empty(0), *parts]).astype(np.float64)

    return ValidationScores(scores(data.normals), scores(data.test))
