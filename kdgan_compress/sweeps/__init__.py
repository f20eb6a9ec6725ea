"""Grids of experiments: planned from a recipe, cut into fleets, run by any ``concurrent.futures`` executor."""
