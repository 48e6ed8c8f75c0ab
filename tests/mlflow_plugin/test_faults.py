"""Unchanged MLflow programs in real processes: without a server, with a dying one, killed, and two on one run."""
