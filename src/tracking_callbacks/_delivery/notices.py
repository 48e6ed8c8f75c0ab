"""Sends an alert to where the user wants it: a webhook, a mailbox, a program."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit

import msgspec

__all__ = ["Notice", "NoticeError", "send"]

_PAUSES = (1.0, 5.0, 20.0)  # between attempts
_SECONDS = 15.0


class NoticeError(Exception):
    """A notice could not be sent."""


@dataclass(frozen=True, slots=True)
class Notice:
    """What the user learns.

    Attributes:
        run: What the user knows the run by.
        run_id: The store's id; None while it is unknown.
        experiment: Name of its experiment.
        condition: The condition that has come true.
        what: What was seen.
        url: Link to the run; empty where there is none.
    """

    run: str
    run_id: str | None
    experiment: str
    condition: str
    what: str
    url: str

    @property
    def text(self) -> str:
        """The notice in one sentence."""
        link = f" {self.url}" if self.url else ""
        return f"{self.run} ({self.experiment}): {self.what}, which is the alert '{self.condition}'.{link}"


def send(channel: str, notice: Notice) -> None:
    """Send a notice, with a few attempts.

    Args:
        channel: As in `Alert.notify`.
        notice: What the user learns.

    Raises:
        NoticeError: A variable is not set, or the last attempt failed.
    """
    for pause in (*_PAUSES, None):
        try:
            _send(channel, notice)
            return
        except (OSError, ValueError, subprocess.SubprocessError) as error:  # smtplib's errors are of the first kind
            if pause is None:
                raise NoticeError(str(error)) from error
            time.sleep(pause)


def _send(channel: str, notice: Notice) -> None:
    content = asdict(notice) | {"text": notice.text}
    if channel.startswith("$"):
        _post(_variable(channel[1:]), content)
    elif channel.startswith("command:"):
        command = shlex.split(channel.removeprefix("command:"))
        subprocess.run(command, input=msgspec.json.encode(content), check=True, timeout=_SECONDS, capture_output=True)
    else:
        _mail(channel.removeprefix("mailto:"), notice)


def _post(url: str, content: dict[str, object]) -> None:
    import urllib3

    host = urlsplit(url).hostname or ""
    if host == "hooks.slack.com":
        body: dict[str, object] = {"text": content["text"]}
    elif host in ("discord.com", "discordapp.com"):
        body = {"content": content["text"]}
    else:
        body = content
    headers = {"Content-Type": "application/json"}
    try:
        answer = urllib3.request(
            "POST", url, body=msgspec.json.encode(body), headers=headers, timeout=_SECONDS, retries=False
        )
    except urllib3.exceptions.HTTPError as error:  # its text holds the URL, which is a secret
        raise OSError(f"{host} cannot be reached ({type(error).__name__})") from None
    if answer.status >= 400:
        raise OSError(f"{host} answered {answer.status}")


def _mail(address: str, notice: Notice) -> None:
    import smtplib
    from email.message import EmailMessage

    message = EmailMessage()
    message["To"] = address
    message["From"] = os.environ.get("SMTP_FROM") or address
    message["Subject"] = f"{notice.run}: {notice.condition}"
    message.set_content(notice.text)
    with smtplib.SMTP(_variable("SMTP_HOST"), int(os.environ.get("SMTP_PORT") or 25), timeout=_SECONDS) as server:
        if user := os.environ.get("SMTP_USERNAME"):
            server.starttls()
            server.login(user, _variable("SMTP_PASSWORD"))
        server.send_message(message)


def _variable(name: str) -> str:
    if not (value := os.environ.get(name, "").strip()):
        raise NoticeError(f"{name} is not set in the environment of the training process")
    return value
