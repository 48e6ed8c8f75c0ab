"""One method of one object, replaced by several parties at once."""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from tracking_callbacks._callbacks.patching import Patch, patched


class Greeter:
    def greet(self, name: str, *, mark: str = ".") -> str:
        """Say hello."""
        return f"hello {name}{mark}"


def tag(greeter: Greeter, text: str) -> Patch:
    def around(call_next: Callable[..., str], *args: Any, **kwargs: Any) -> str:
        return f"{text}({call_next(*args, **kwargs)})"

    return patched(greeter, "greet", around)


def test_a_patch_takes_the_calls_of_one_object_until_it_is_removed() -> None:
    greeter, other = Greeter(), Greeter()
    patch = tag(greeter, "a")
    during = greeter.greet("you", mark="!")
    patch.remove()
    patch.remove()

    assert during == "a(hello you!)"
    assert other.greet("you") == "hello you."
    assert greeter.greet("you") == "hello you."
    assert vars(greeter) == {}


def test_a_patch_looks_like_the_method_that_it_replaces() -> None:
    greeter = Greeter()
    tag(greeter, "a")

    assert greeter.greet.__name__ == "greet"
    assert greeter.greet.__doc__ == "Say hello."
    assert inspect.signature(greeter.greet) == inspect.signature(Greeter().greet)


def test_a_patch_of_something_that_does_not_exist_is_refused() -> None:
    with pytest.raises(AttributeError):
        patched(Greeter(), "sing", lambda call_next: call_next())


@pytest.mark.parametrize("order", list(itertools.permutations("abc")), ids="".join)
@pytest.mark.parametrize("hooked", [False, True], ids=["class", "user-hook"])
def test_patches_are_removed_in_any_order(order: tuple[str, ...], hooked: bool) -> None:
    greeter = Greeter()
    plain = "hello you."

    def hook(name: str) -> str:
        return f"user {name}"

    if hooked:
        greeter.greet = hook
        plain = "user you"
    patches = {text: tag(greeter, text) for text in "abc"}
    heard = [greeter.greet("you")]
    for text in order:
        patches[text].remove()
        heard.append(greeter.greet("you"))

    def with_patches(gone: tuple[str, ...]) -> str:
        said = plain
        for text in "abc":
            said = said if text in gone else f"{text}({said})"
        return said

    assert heard == [with_patches(order[:count]) for count in range(4)]
    assert vars(greeter) == ({"greet": hook} if hooked else {})


@pytest.mark.parametrize("order", list(itertools.permutations("ab")), ids="".join)
def test_a_hook_that_the_user_sets_in_between_stays(order: tuple[str, ...]) -> None:
    greeter = Greeter()
    below = tag(greeter, "a")
    before = greeter.greet
    greeter.greet = hook = lambda name: f"user({before(name)})"
    above = tag(greeter, "b")
    during = greeter.greet("you")
    for text in order:
        {"a": below, "b": above}[text].remove()

    assert during == "b(user(a(hello you.)))"
    assert vars(greeter) == {"greet": hook}
    assert greeter.greet("you") == "user(hello you.)"


def test_a_wrapper_that_copies_the_metadata_of_a_patch_is_still_the_users() -> None:
    greeter = Greeter()
    patch = tag(greeter, "a")
    before = greeter.greet
    greeter.greet = hook = functools.wraps(before)(lambda name: f"user({before(name)})")
    patch.remove()
    again = tag(greeter, "b")
    again.remove()

    assert vars(greeter)["greet"] is hook
    assert greeter.greet("you") == "user(hello you.)"


def test_an_inactive_patch_that_the_user_puts_back_does_nothing_and_goes_with_the_next_one() -> None:
    greeter = Greeter()
    patch = tag(greeter, "a")
    before = greeter.greet
    greeter.greet = lambda name: f"user({before(name)})"
    patch.remove()
    greeter.greet = before
    put_back = greeter.greet("you")
    again = tag(greeter, "b")
    during = greeter.greet("you")
    again.remove()

    assert (put_back, during) == ("hello you.", "b(hello you.)")
    assert vars(greeter) == {}


def test_a_patch_may_be_removed_by_the_call_that_it_takes() -> None:
    greeter = Greeter()

    def once(call_next: Callable[[str], str], name: str) -> str:
        patch.remove()
        return f"once({call_next(name)})"

    patch = patched(greeter, "greet", once)
    heard = [greeter.greet("you"), greeter.greet("you")]

    assert heard == ["once(hello you.)", "hello you."]


def test_an_exception_passes_through() -> None:
    greeter = Greeter()
    patch = tag(greeter, "a")
    with pytest.raises(TypeError):
        greeter.greet()  # type: ignore[call-arg]
    patch.remove()

    assert vars(greeter) == {}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))], ids=["copy", "pickle"])
def test_a_copied_object_has_its_methods_without_the_patch(copied: Callable[[Greeter], Greeter]) -> None:
    greeter = Greeter()
    tag(greeter, "a")
    tag(greeter, "b")
    twin = copied(greeter)
    twin.mark = "own"  # type: ignore[attr-defined]

    assert twin.greet("you") == "hello you."
    assert twin.greet.__self__ is twin  # type: ignore[attr-defined]
    assert greeter.greet("you") == "b(a(hello you.))"
