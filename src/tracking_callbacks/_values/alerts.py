"""When to tell the user that something goes wrong in a training run, and how."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from tracking_callbacks._values.checking import check_fields, fields_of, struct_from
from tracking_callbacks._values.names import safe_name
from tracking_callbacks.errors import ConfigError

__all__ = ["Alert", "Condition", "alerts_from", "lacking_variables", "parse_condition"]

_NAME = r"(?P<metric>\S+|'[^']+'|\"[^\"]+\")"
_FORMS = {
    "bound": re.compile(rf"{_NAME}\s*(?P<relation>>=|<=|>|<)\s*(?P<number>[-+.\deE]+)"),
    "not finite": re.compile(rf"{_NAME}\s+is\s+(nan|not\s+finite)"),
    "explodes": re.compile(rf"{_NAME}\s+explodes"),
    "no progress": re.compile(r"no\s+progress\s+for\s+(?P<number>[.\d]+)\s*(?P<unit>s|min|h)"),
    "fails": re.compile(r"fails"),
    "dies": re.compile(r"dies"),
    "refused": re.compile(r"records\s+are\s+refused"),
}
_RELATIONS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}
_EXPECTED = (
    "a condition such as 'train/loss > 10', 'train/loss is nan', 'train/loss explodes', 'no progress for 10 min', "
    "'fails', 'dies' or 'records are refused'"
)
_CHANNEL = re.compile(r"\$[A-Za-z_][A-Za-z0-9_]*|mailto:[^@\s]+@[^@\s]+|command:.*\S.*")
_CHANNELS = "'$NAME' (a variable that holds the webhook's URL), 'mailto:name@host' or 'command:program arguments'"

Text = Annotated[str, Meta(pattern=r"\S", description="a text that is not empty")]


class Alert(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Tell the user once when a condition comes true in a run.

    Delivery looks for it, so that it works after the training process was killed and while the server is away.

    Attributes:
        when: The condition: a metric beyond a bound (``"train/loss > 10"``), ``"train/loss is nan"``, ``"train/loss
            explodes"`` (not finite, or above ten times the median of its last hundred points), ``"no progress for 10
            min"`` (no metric is logged), ``"fails"`` (FAILED, or killed), ``"dies"`` (killed), ``"records are
            refused"`` (by the store).
        notify: How, one way or several. ``"$NAME"``: the variable NAME holds the URL of a webhook, which gets JSON, in
            the form of Slack or Discord where it is theirs. ``"mailto:name@host"``: the variables ``SMTP_HOST``,
            ``SMTP_PORT``, ``SMTP_USERNAME``, ``SMTP_PASSWORD`` and ``SMTP_FROM`` say by which server.
            ``"command:program arguments"``: a program that gets the JSON on its standard input.

    Raises:
        ConfigError: The condition or a way to notify is none of these.
    """

    when: Text
    notify: Annotated[str | tuple[str, ...], Meta(description=_CHANNELS)]  # two constraints in it crash msgspec 0.22

    def __post_init__(self) -> None:
        check_fields(self, "Alert")
        parse_condition(self.when)
        for channel in self.channels or ("",):
            if not _CHANNEL.fullmatch(channel):
                hint = "; a URL is a secret and belongs into the environment" if "://" in channel else ""
                shown = "a URL" if "://" in channel else repr(channel)
                raise ConfigError(f"Alert: notify: expected {_CHANNELS}, got {shown}{hint}", setting="notify")

    @property
    def channels(self) -> tuple[str, ...]:
        """The ways to notify."""
        return (self.notify,) if isinstance(self.notify, str) else self.notify


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition, taken apart.

    Attributes:
        kind: ``bound``, ``not finite``, ``explodes``, ``no progress``, ``fails``, ``dies`` or ``refused``.
        metric: Name of the metric; empty where the condition is about none.
        relation: ``>``, ``>=``, ``<`` or ``<=``.
        number: The bound, or seconds.
    """

    kind: str
    metric: str = ""
    relation: str = ">"
    number: float = math.nan

    def holds(self, value: float) -> bool:
        """Return whether a point of the metric meets a condition on a single point."""
        if self.kind == "bound":
            return bool(_RELATIONS[self.relation](value, self.number))
        return not math.isfinite(value)


def parse_condition(text: str) -> Condition:
    """Return what `text` says.

    Raises:
        ConfigError: It is no condition.
    """
    for kind, form in _FORMS.items():
        if (found := form.fullmatch(text.strip())) is None:
            continue
        parts = found.groupdict()
        try:
            number = float(parts.get("number") or "nan") * _SECONDS.get(parts.get("unit", ""), 1.0)
            metric = safe_name(parts["metric"].strip("'\"")) if "metric" in parts else ""
        except ValueError:  # no number, or no name
            break
        return Condition(kind, metric, parts.get("relation") or ">", number)
    raise ConfigError(f"Alert: when: expected {_EXPECTED}, got {text!r}", setting="when")


def lacking_variables(channels: Collection[str], environ: Mapping[str, str]) -> str:
    """Return what these ways to notify lack: ``A and B not set in the environment``; empty if they lack nothing."""
    needed = [channel[1:] for channel in channels if channel.startswith("$")]
    if any(channel.startswith("mailto:") for channel in channels):
        needed += ["SMTP_HOST", *(["SMTP_PASSWORD"] if environ.get("SMTP_USERNAME") else [])]
    lacking = sorted({name for name in needed if not environ.get(name, "").strip()})
    return f"{' and '.join(lacking)} not set in the environment" if lacking else ""


def alerts_from(given: Any, where: str) -> tuple[Alert, ...]:
    """Return what an argument or a config file says under ``alerts``.

    Args:
        given: Alerts, or mappings of their fields.
        where: Where they come from, for the error.

    Raises:
        ConfigError: It is something else, or one of them cannot be used.
    """
    if given is None:
        return ()
    if isinstance(given, (str, Mapping)) or not isinstance(given, Iterable):
        raise ConfigError(f"{where}: alerts: expected a list of alerts, got {given!r}", setting="alerts")
    found = []
    for number, one in enumerate(given):
        name = f"alerts[{number}]"
        if not isinstance(one, (Alert, Mapping)):
            raise ConfigError(f"{where}: {name}: expected {fields_of(Alert)}, got {one!r}", setting=name)
        found.append(one if isinstance(one, Alert) else struct_from(Alert, one, where, {}, f"{name}."))
    return tuple(found)
