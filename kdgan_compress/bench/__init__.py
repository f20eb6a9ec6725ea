"""Benchmark of training and scoring against reference loops."""
