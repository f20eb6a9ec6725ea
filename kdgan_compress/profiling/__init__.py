"""Profiling: parameters and operations of a model, measured latency."""

from kdgan_compress.profiling.counts import Counts, count
from kdgan_compress.profiling.latency import Latency, detector_call, identity_model_call, measure_latency

__all__ = ["Counts", "Latency", "count", "detector_call", "identity_model_call", "measure_latency"]
