"""Compares this package with its alternatives on the same work, in one run: ``make bench``."""
