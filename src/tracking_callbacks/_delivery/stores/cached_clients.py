"""Clients that MLflow keeps with the credentials that they were made with."""

from __future__ import annotations

import sys

__all__ = ["forget_clients"]


def forget_clients() -> None:
    """Make MLflow build its clients of artifact stores anew, so that they read the environment's credentials again.

    What is not imported has kept nothing. All names but boto3's are undocumented (MLflow 3.17.2).
    """
    if service := sys.modules.get("mlflow.tracking._tracking_service.utils"):
        service._artifact_repos_cache.clear()
    if s3 := sys.modules.get("mlflow.store.artifact.s3_artifact_repo"):
        s3._cached_get_s3_client.cache_clear()
    if boto3 := sys.modules.get("boto3"):
        vars(boto3)["DEFAULT_SESSION"] = None
    if rest := sys.modules.get("mlflow.utils.rest_utils"):
        rest.get_workspace_client.cache_clear()
