"""Files that the server does not take itself: the artifact root is a bucket or a folder that its clients write to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

__all__ = ["DirectFiles"]


class DirectFiles(ABC):
    """Uploads to places that only MLflow's own client knows how to reach. Failures are `DeliveryError`s."""

    @abstractmethod
    def renew(self) -> None:
        """Use the credentials that the environment holds by now."""

    @abstractmethod
    def log_artifact(self, run_id: str, path: Path, artifact_path: str | None) -> None:
        """Upload a file of a run."""

    @abstractmethod
    def log_artifacts(self, run_id: str, folder: Path, artifact_path: str | None) -> None:
        """Upload the content of a folder of a run."""

    @abstractmethod
    def log_model_artifacts(self, model_id: str, folder: Path) -> None:
        """Upload the files of a logged model."""
