"""Which anomaly score a detector has and how its statistics are fitted; a section of the recipe."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from kdgan_compress.errors import KdganError

ScoreType = Literal["norm", "gaussian", "mixture"]
Features = Literal["residual", "latents", "discriminator"]
Positions = Literal["auto", "global", "per-position"]
PhotoScore = Literal["max", "top5"]


@dataclass(frozen=True)
class ScoreSettings:
    """The score of an image, and how a photo's score follows from those of its tiles.

    Attributes:
        type: ``"norm"``: the paper's, ‖z1 − z2‖₂ for ``ede``; nothing is fitted. ``"gaussian"``: the Mahalanobis
            distance of the features. ``"mixture"``: their negative log-likelihood under K Gaussians, for several kinds
            of normal images.
        features: ``"residual"``: z1 − z2. ``"latents"``: [z1; z2]. ``"discriminator"``: the activations of all the
            discriminator's blocks at 4×4 positions, over whose scores the mean is taken; the generator is not needed.
            None: the residual for a Gaussian, the latents for a mixture, whose kinds of normal images differ in z1.
        num_components: K of the mixture; None chooses it by held-out likelihood.
        num_pca: Number of leading principal components that the mixture uses.
        positions: Of a Gaussian on tiles: one for all tiles, or one per grid position; ``"auto"`` chooses by held-out
            likelihood and, on the discriminator, is always one per position.
        rank: Largest number of directions of a Gaussian per grid position of tiles.
        photo: A photo's score: the maximum over its tiles, or the mean of the highest 5 %.

    Raises:
        KdganError: A number below 1, or an unknown name.
    """

    type: ScoreType = "gaussian"
    features: Features | None = None
    num_components: int | None = None
    num_pca: int = 64
    positions: Positions = "auto"
    rank: int = 64
    photo: PhotoScore = "max"

    def __post_init__(self) -> None:
        choices: dict[str, Any] = {"type": ScoreType, "positions": Positions, "photo": PhotoScore}
        if self.features is not None:
            choices["features"] = Features
        for name, choice in choices.items():
            if getattr(self, name) not in get_args(choice):
                known = ", ".join(get_args(choice))
                raise KdganError(f"score.{name} must be one of {known}", f"got {getattr(self, name)!r}", "Choose one")
        for name in ("num_components", "num_pca", "rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise KdganError(f"score.{name} must be 1 or more", f"got {value}", "Leave it out for the default")

    @property
    def fitted_features(self) -> Features:
        """``features``, or those that suit the type."""
        return self.features or ("latents" if self.type == "mixture" else "residual")

    @property
    def uses_discriminator(self) -> bool:
        """Whether the discriminator is scored in place of the generator."""
        return self.type != "norm" and self.features == "discriminator"
