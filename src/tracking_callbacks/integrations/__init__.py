"""Tracking for further frameworks: one module for each, which imports that framework and no other."""

__all__: list[str] = []
