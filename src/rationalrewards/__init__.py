"""Reasoning rewards for visual generation, as PyTorch Lightning modules."""

__version__ = "0.1.0"
