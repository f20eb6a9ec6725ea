"""Profiling: what a detector costs, counted and measured."""

from kdgan_compress.profiling.counts import Counts, count
from kdgan_compress.profiling.latency import Latency, measure_latency, passing_through, scoring

__all__ = ["Counts", "Latency", "count", "measure_latency", "passing_through", "scoring"]
