"""Probes: they read, and the run with them is bit-identical to the run without."""
