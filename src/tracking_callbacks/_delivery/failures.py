"""Why a record cannot be delivered.

DeliveryError
├── Transient    the store cannot be reached or is busy: try again
│   └── NotYetVisible  the store does not show something yet: look again soon
├── Blocked      the store answers, but a person must act (credentials, a deleted experiment): try again, slowly
└── Refused      the store will never accept this: put it aside and go on
    └── NotOffered  the store has no such API
"""

from __future__ import annotations

__all__ = ["ALREADY_THERE", "Blocked", "DeliveryError", "NotOffered", "NotYetVisible", "Refused", "Transient"]

ALREADY_THERE = ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS")


class DeliveryError(Exception):
    """Root of the errors that the MLflow adapter raises."""


class Transient(DeliveryError):
    """The call failed for now, or its outcome is unknown; the same call may succeed later.

    Attributes:
        may_have_committed: The request reached the store, and the store may have carried it out or still do so.
        retry_now: The store is up and not slow, so an immediate retry is worthwhile.
        retry_after: Seconds that the store asked to wait; 0 if it asked for nothing.
    """

    def __init__(
        self, message: str, *, may_have_committed: bool = False, retry_now: bool = False, retry_after: float = 0.0
    ) -> None:
        super().__init__(message)
        self.may_have_committed = may_have_committed
        self.retry_now = retry_now
        self.retry_after = retry_after


class NotYetVisible(Transient):
    """Nothing has failed: what another process creates, or a lost call may have created, is not visible yet."""


class Blocked(DeliveryError):
    """The store refuses every call of this kind until a person fixes the cause."""


class Refused(DeliveryError):
    """The store answered that the content of the call is wrong.

    Attributes:
        code: MLflow's error code, as in `ALREADY_THERE`; empty if the store named none.
    """

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class NotOffered(Refused):
    """The store has no such API: an MLflow server of an older version, Azure ML, a gateway."""
