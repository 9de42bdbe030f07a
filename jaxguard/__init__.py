"""Audit neural-network checkpoints in JAX."""

__version__ = "0.1.0"
