"""Experiments in the simulated shop, where what a model truly earns is known beside its replay metrics."""
