"""Profiling: parameters and operations of a model, measured latency, the machine."""
