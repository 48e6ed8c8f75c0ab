"""Conversion of scalars, names and nested structures."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import re
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracking_callbacks import ConfigError, InvalidNameError, MetricValueError
from tracking_callbacks._values.conversion import flatten, param_text, to_jsonable, to_scalar
from tracking_callbacks._values.names import SafeNames, check_aliases, safe_name


class Color(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Settings:
    path: object
    colors: set[Color]


def test_scalars_of_every_kind_become_floats() -> None:
    import torch

    values = [1, True, 1.0, np.float32(1), np.int64(1), np.array([[1.0]]), torch.tensor(1), torch.tensor([1.0])]

    assert [to_scalar("m", value) for value in values] == [1.0] * len(values)
    assert to_scalar("huge", 10**400) == math.inf


def test_a_gradient_does_not_keep_a_tensor_from_being_logged() -> None:
    import torch

    assert to_scalar("m", torch.tensor(2.0, requires_grad=True)) == 2.0


class Measured:
    """A number of another library; its `item` is something else, and so is its `size`."""

    size = 3

    def item(self, key: str) -> str:
        return key

    def __float__(self) -> float:
        return 0.5


class Counted:
    """A whole number of another library."""

    def __index__(self) -> int:
        return 4


def test_whatever_float_or_item_takes_becomes_a_float() -> None:
    import torch

    values = [Fraction(1, 2), Decimal("0.5"), np.float16(0.5), np.longdouble(0.5), Measured()]
    values += [np.array([Decimal("0.5")], dtype=object), torch.tensor([[0.5]], dtype=torch.bfloat16)]

    assert [to_scalar("m", value) for value in values] == [0.5] * len(values)
    assert [to_scalar("m", value) for value in (Counted(), np.bool_(True))] == [4.0, 1.0]
    assert [to_scalar("m", Fraction(sign * 10**400)) for sign in (1, -1)] == [math.inf, -math.inf]


@pytest.mark.parametrize(
    "value",
    [
        *("1", b"1", None, [1], np.array([1, 2]), np.array([]), object()),
        *(bytearray(b"1"), np.str_("1"), np.array(["1"]), 1j, np.complex128(1), Decimal("sNaN"), float),
    ],
)
def test_a_value_that_is_not_one_number_is_named(value: object) -> None:
    with pytest.raises(MetricValueError, match="metric 'acc': expected one number") as raised:
        to_scalar("acc", value)

    assert raised.value.key == "acc"


@pytest.mark.parametrize("shape", [(), (3,)])
def test_a_tensor_without_values_is_named(shape: tuple[int, ...]) -> None:
    import torch

    with pytest.raises(MetricValueError, match="metric 'acc': expected one number"):
        to_scalar("acc", torch.ones(shape, device="meta"))


@given(st.text(max_size=400))
def test_every_text_is_refused_or_becomes_a_name_that_mlflow_accepts(name: str) -> None:
    from mlflow.utils.validation import _validate_metric_name, _validate_param_name, _validate_tag_name

    try:
        safe = safe_name(name)
    except InvalidNameError:
        assert not name.strip()
        return
    assert len(safe) <= 250
    for validate in (_validate_metric_name, _validate_param_name, _validate_tag_name):
        validate(safe)


@given(st.lists(st.text(min_size=1, max_size=300).filter(str.strip), unique=True, max_size=20))
def test_different_names_stay_distinct(names: list[str]) -> None:
    table = SafeNames()

    assert len({table.add(name) for name in names}) == len(names)


@pytest.mark.parametrize("name", ["loss", "train/loss", "f1 weighted", "a.b-c_d:e", "größe"])
def test_valid_names_are_unchanged(name: str) -> None:
    assert safe_name(name) == name


def test_flatten_unfolds_and_loses_no_key() -> None:
    assert flatten({"a": {"b": {"c": 1}}, "d": {}, "e": [1]}) == {"a.b.c": 1, "d": {}, "e": [1]}


def test_to_jsonable_gives_the_same_json_each_time(tmp_path) -> None:
    value = {
        "settings": Settings(path=tmp_path, colors={Color.RED}),
        "set": {"b", "a"},
        "array": np.arange(3),
        "scalar": np.float64(0.5),
        "class": Settings,
        "object": object(),
        "nan": math.nan,
    }

    text = json.dumps(to_jsonable(value), allow_nan=False)
    assert json.loads(text) == {
        "settings": {"path": str(tmp_path), "colors": ["red"]},
        "set": ["a", "b"],
        "array": [0, 1, 2],
        "scalar": 0.5,
        "class": f"{__name__}.Settings",
        "object": "builtins.object",
        "nan": "nan",
    }
    assert not re.search("0x[0-9a-f]{6}", text)


def test_to_jsonable_survives_a_structure_that_contains_itself() -> None:
    loop: dict[str, object] = {}
    loop["self"] = loop

    assert to_jsonable(loop) == {"self": "<dict: contains itself>"}


def test_param_texts_of_containers_are_plain() -> None:
    assert [param_text(value) for value in (1e-4, True, None, {"b", "a"}, Color.RED)] == [
        *("0.0001", "True", "None", "['a', 'b']", "red"),
    ]


@pytest.mark.parametrize("aliases", [["latest"], ["v1"], ["V22"], ["a b"], [""], ["a/b"], "champion", ["x" * 256]])
def test_aliases_that_mlflow_forbids_are_named(aliases) -> None:
    with pytest.raises(ConfigError, match="aliases"):
        check_aliases(aliases)


def test_aliases_may_be_any_sequence() -> None:
    assert check_aliases(["champion", "prod-2", "v1x"]) == ("champion", "prod-2", "v1x")
