"""What can keep a record from the store.

DeliveryError
├── Transient    the store cannot be reached or is busy: try again
│   └── NotYetVisible  something must show itself first: look again soon
├── Blocked      the store answers, and a person must act (credentials, a deleted experiment): try again, slowly
└── Refused      the store will never take this: put it aside and go on
"""

from __future__ import annotations

__all__ = ["Blocked", "DeliveryError", "NotYetVisible", "Refused", "Transient"]


class DeliveryError(Exception):
    """Root of the errors that the MLflow adapter raises."""


class Transient(DeliveryError):
    """The outcome is unknown or negative for now; the same call may succeed later.

    Attributes:
        may_have_committed: The store may still carry out the call: it was reached and has not said what became of it.
        retry_now: The store is there and not slow: another try at once is worth it.
    """

    def __init__(self, message: str, *, may_have_committed: bool = False, retry_now: bool = False) -> None:
        super().__init__(message)
        self.may_have_committed = may_have_committed
        self.retry_now = retry_now


class NotYetVisible(Transient):
    """Nothing has failed: what somebody else makes, or a lost call has perhaps made, is not there yet."""


class Blocked(DeliveryError):
    """The store refuses every call of this kind until somebody changes something outside."""


class Refused(DeliveryError):
    """The store answered that the content of the call is wrong."""
