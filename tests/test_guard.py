"""A failing hook is reported once per run, and each training run hears of its own failures."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import pytest

from tracking_callbacks._writing.guard import never_in_the_way


@dataclass
class Known:
    run_key: str


class Hooks:
    """A callback with a run, or none."""

    def __init__(self, run: Known | None = None) -> None:
        self.run = run

    @never_in_the_way(begins=True)
    def begin(self, error: Exception | None = None) -> None:
        if error is not None:
            raise error

    @never_in_the_way(default=True)
    def step(self, error: Exception) -> bool:
        raise error

    @never_in_the_way
    def end(self, error: Exception) -> None:
        raise error


@never_in_the_way
def write(text: str, run: Known) -> None:
    raise OSError(text)


@pytest.fixture(autouse=True)
def nothing_reported(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("tracking_callbacks._writing.guard._reported", set())
    caplog.set_level(logging.DEBUG, "tracking_callbacks._writing.guard")


def levels(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.levelname for record in caplog.records if record.name == "tracking_callbacks._writing.guard"]
    caplog.clear()
    return found


def test_a_failure_that_repeats_in_a_run_is_reported_once_and_then_at_debug_level(caplog: Any) -> None:
    hooks = Hooks(Known("first"))
    returned = [hooks.step(ValueError("odd")) for _ in range(3)]

    assert returned == [True, True, True]
    assert caplog.records[0].exc_info
    assert levels(caplog) == ["ERROR", "DEBUG", "DEBUG"]


def test_another_hook_and_another_kind_of_exception_are_reported_too(caplog: Any) -> None:
    hooks = Hooks(Known("first"))
    hooks.step(ValueError())
    hooks.step(KeyError())
    hooks.end(ValueError())

    assert levels(caplog) == ["ERROR", "ERROR", "ERROR"]


def test_each_run_hears_of_its_own_failure(caplog: Any) -> None:
    hooks = Hooks(Known("first"))
    hooks.step(ValueError())
    hooks.run = Known("second")
    hooks.step(ValueError())
    hooks.step(ValueError())
    hooks.run = Known("first")
    hooks.step(ValueError())

    assert levels(caplog) == ["ERROR", "ERROR", "DEBUG", "DEBUG"]


def test_the_run_may_be_any_argument(caplog: Any) -> None:
    for run in (Known("first"), Known("second"), Known("first")):
        write("a", run)

    assert levels(caplog) == ["ERROR", "ERROR", "DEBUG"]


def test_the_next_training_run_hears_of_a_failure_without_a_run(caplog: Any) -> None:
    hooks = Hooks()
    for _ in range(2):
        hooks.begin()
        hooks.step(ValueError())
        hooks.step(ValueError())

    assert levels(caplog) == ["ERROR", "DEBUG", "ERROR", "DEBUG"]


def test_every_begin_that_fails_is_reported_although_the_callback_still_has_the_former_run(caplog: Any) -> None:
    hooks = Hooks(Known("former"))
    for _ in range(3):
        hooks.begin(ValueError())

    assert levels(caplog) == ["ERROR", "ERROR", "ERROR"]


def test_a_begin_does_not_repeat_the_failures_of_a_run_that_goes_on(caplog: Any) -> None:
    hooks, other = Hooks(Known("first")), Hooks()
    hooks.step(ValueError())
    other.begin()
    hooks.step(ValueError())

    assert levels(caplog) == ["ERROR", "DEBUG"]


def test_an_argument_that_cannot_be_asked_for_its_run_does_no_harm(caplog: Any) -> None:
    class Odd:
        @property
        def run(self) -> Known:
            raise RuntimeError("not now")

    @never_in_the_way
    def hook(odd: Odd) -> None:
        raise ValueError

    hook(Odd())
    hook(Odd())

    assert levels(caplog) == ["ERROR", "DEBUG"]


def test_an_interrupt_passes_through() -> None:
    @never_in_the_way
    def hook() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hook()
