"""Limits of a search."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from kdgan_compress.api.search_candidates import Candidate
from kdgan_compress.errors import KdganError


@dataclass(frozen=True)
class Limits:
    """What a student may cost and lose; None for no limit. Kilobytes of 1,000 bytes, microseconds, AUC in [0, 1]."""

    max_kb: float | None = None
    max_latency_us: float | None = None
    max_auc_drop: float | None = None

    def fits_device(self, candidate: Candidate) -> bool:
        """Whether bytes and latency are within the limits."""
        return self._excess(candidate, with_auc=False) == 0

    def fits(self, candidate: Candidate) -> bool:
        """Whether everything is within the limits; AUC on the half that chooses."""
        return self._excess(candidate, with_auc=True) == 0

    def error(self, candidates: Sequence[Candidate]) -> KdganError:
        """Names the limits and the candidate that exceeds them by the smallest part of them."""
        given = dataclasses.asdict(self).items()
        text = ", ".join(f"--{name.replace('_', '-')} {value:g}" for name, value in given if value is not None)
        each = min(candidates, key=lambda each: self._excess(each, with_auc=True))
        found = f"{each.size_bytes / 1000:.1f} KB, {each.latency_us:.0f} µs and a drop of {each.auc_drop:.4f}"
        return KdganError(
            f"No student meets {text}",
            f"the closest is {each.name} with {found}",
            "Relax a limit, or try other --width",
        )

    def _excess(self, candidate: Candidate, with_auc: bool) -> float:
        pairs = [(candidate.size_bytes / 1000, self.max_kb), (candidate.latency_us, self.max_latency_us)]
        excess = sum(max(0.0, value / limit - 1) for value, limit in pairs if limit is not None)
        if with_auc and self.max_auc_drop is not None:
            excess += max(0.0, candidate.auc_drop - self.max_auc_drop) / max(self.max_auc_drop, 0.001)
        return excess
