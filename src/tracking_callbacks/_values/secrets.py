"""Pure: finds secrets in keys, texts, command lines and URIs, and replaces them by ``***`` before anything is written.

A secret is recognised by its name (``hub_token``, ``AWS_SECRET_ACCESS_KEY``, ``--password``) or by its form (``hf_…``,
``AKIA…``, a private key's block, credentials in a URI). A secret with neither a telling name nor a known form is not
found.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from urllib.parse import urlsplit, urlunsplit

__all__ = ["MASK", "is_secret", "mask_command", "mask_text", "mask_uri", "names_secret_number", "without_credentials"]

MASK = "***"

_CERTAIN = r"passw(or)?d|passphrase|pwd|secrets?|credentials?|api_?keys?|access_?keys?|private_?keys?"
_SECRET_KEY = re.compile(
    rf"(^|[_.])({_CERTAIN}|authorization|(set_?)?cookie|"
    r"(hub|hf|auth|access|api|bearer|push_to_hub|refresh|use_auth|session|security)_?tokens?)($|[_.])"
    r"|^tokens?$|_(key|secret|token)$"
)
_CERTAIN_KEY = re.compile(rf"(^|[_.])({_CERTAIN})($|[_.])")
# Named like a secret by the pattern above, but settings of models and trainers that belong in a run.
_NOT_SECRET = re.compile(
    r"(bos|eos|pad|sep|cls|unk|mask|decoder_start|image|audio|video|special|sort|primary|boi|eoi|eot|eom|prefix|suffix|"
    r"middle|start|end|blank|stop|text|label|feature|input|output|target|group|cache|index|metric|obs|observation|"
    r"action|reward|episode|column|join|foreign)_(token|key)$"
)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

_URI_CREDENTIALS = re.compile(r"(?P<scheme>[a-zA-Z][\w+.\-]*://)[^/\s@'\"]+@")
_SIGNATURE = re.compile(r"([?&](?:x-amz-|x-goog-)?(?:sig|signature)=)[^&\s\"'<>]+", re.IGNORECASE)
_KNOWN_FORMS = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w\-]{20,}|sk-[A-Za-z0-9_\-]{20,}|"
    r"(AKIA|ASIA)[0-9A-Z]{16}|AIza[\w\-]{35}|xox[abeprs]-[\w\-]{10,}|npm_[A-Za-z0-9]{30,}|pypi-[\w\-]{30,}|"
    r"dapi[0-9a-f]{32}|eyJ[\w\-]{8,}\.[\w\-]{8,}\.[\w\-]{8,})"
)
_PRIVATE_KEY = re.compile(
    r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----.*?(?:-----END [A-Z ]*-----|\Z)", re.DOTALL
)
_SCHEME_AND_TOKEN = re.compile(r"\b(Bearer|Basic|Token)\s+(?=\S*[0-9=])[A-Za-z0-9._~+/=\-]{8,}")
_HEADER = re.compile(
    r"(?P<name>\b(?:proxy-)?authorization[\"']?\]?\s*[:=]\s*[\"']?)(?P<value>[^\r\n\"']+)", re.IGNORECASE
)
_OPTION = re.compile(r"(?P<option>(?<![\w\-])--?[A-Za-z][\w.\-]*+)(?P<space>[ \t]+)(?P<value>[^\s\-][^\s\"']*)")
# A whole line of a settings file, where a value may hold spaces. A quoted value is left to the next pattern.
_SETTING = re.compile(
    r"^(?P<key>[ \t+\-]*+[\w.\-]++)(?P<sep>[ \t]*+:[ \t]+|[ \t]++=[ \t]+)(?P<value>[^\s\"'\[{|>#&*!][^\r\n]*)",
    re.MULTILINE,
)
# Possessive and anchored at a word's beginning: a line of a million letters takes linear time.
_ASSIGNED = re.compile(
    r"(?<![\w.\-])(?P<key>-{0,2}[A-Za-z_][\w.\-]*+)(?P<close>[\"']?\]?)"
    r"\s*+(?::\s*[A-Za-z_][\w.|\[\] ,]*=(?!=)\s*|=>|:=|=(?!=)|:(?!//))[ \t]*"
)
_VALUE = re.compile(
    r"[A-Za-z]{0,2}\"(?:[^\"\\\n]|\\.)*\"|[A-Za-z]{0,2}'(?:[^'\\\n]|\\.)*'|\[[^\]]{0,5000}\]|[^\s,;&'\"]+",
)
_LITERAL = re.compile(r"\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'")
# Placeholders for a value: {token}, %s, ${TOKEN}, <token>.
_PLACEHOLDER = re.compile(r"\$?\{[^{}]*\}|%(\(\w+\))?[sdr]|<[\w \-]+>")
_NUMBER = re.compile(r"[+\-]?\d+(\.\d*)?([eE][+\-]?\d+)?")
_NOTHING = frozenset({"none", "null", "true", "false", MASK})
# In lower case. Every text that a pattern above could mask holds one of these words, or a long run of the characters of
# known forms, or is a URI.
_WORDS = ("pass", "pwd", "secret", "credential", "key", "token", "authorization", "cookie", "bearer", "basic")
_FORM_CHARACTERS = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.")
_FORMS_AS_X = bytes(ord("x") if code in _FORM_CHARACTERS or code >= 0x80 else ord(" ") for code in range(256))
_SHORTEST_FORM = b"x" * 15  # xoxb- and ten more


@functools.lru_cache(maxsize=4096)
def is_secret(key: str) -> bool:
    """Return whether `key` (``hub_token``, ``AWS_SECRET_ACCESS_KEY``, …) names something that must not be shown."""
    name = _words(key)
    return bool(_SECRET_KEY.search(name)) and not _NOT_SECRET.search(name)


@functools.lru_cache(maxsize=4096)
def names_secret_number(key: str) -> bool:
    """Return whether even a number under `key` is a secret: a ``password`` is, a ``max_token`` is not."""
    return bool(_CERTAIN_KEY.search(_words(key)))


def _words(key: str) -> str:
    return _CAMEL.sub("_", key).replace("-", "_").lower()


def mask_text(text: str, *, code: bool = False) -> str:
    """Return `text` with everything that is a secret by its name or its form replaced by ``***``.

    Args:
        text: Anything: a log line, a settings file, a traceback, a diff.
        code: The text is source code, in which only literals are secrets: ``token = arguments.token`` reveals nothing.
    """
    return _mask_patterns(text, code=code) if _may_hold_secret(text) else text


def _mask_patterns(text: str, *, code: bool) -> str:
    if "PRIVATE KEY" in text:
        text = _PRIVATE_KEY.sub(MASK, text)
    if "://" in text:
        text = _SIGNATURE.sub(rf"\g<1>{MASK}", _URI_CREDENTIALS.sub(rf"\g<scheme>{MASK}@", text))
    text = _KNOWN_FORMS.sub(MASK, text)
    text = _SCHEME_AND_TOKEN.sub(rf"\g<1> {MASK}", text)
    if not code:
        text = _HEADER.sub(rf"\g<name>{MASK}", text)
        text = _SETTING.sub(_masked_setting, text)
        text = _OPTION.sub(_masked_option, text)
    else:
        text = _LITERAL.sub(_masked_in_literal, text)
    return _mask_assigned(text, literals_only=code) if ":" in text or "=" in text else text


def _may_hold_secret(text: str) -> bool:
    """Return False for a text that holds no secret, as most do not: this takes a tenth of the time of the patterns."""
    lowered = text.lower()
    for word in _WORDS:
        if word in lowered:
            return True
    if "://" in text and ("@" in text or "sig" in lowered):
        return True
    if _SHORTEST_FORM not in text.encode(errors="replace").translate(_FORMS_AS_X):
        return False
    return _KNOWN_FORMS.search(text) is not None


def _masked_in_literal(match: re.Match[str]) -> str:
    literal = match.group()
    return literal[0] + mask_text(literal[1:-1]) + literal[-1] if ":" in literal or "=" in literal else literal


def _mask_assigned(text: str, *, literals_only: bool) -> str:
    parts, copied, position = [], 0, 0
    while assigned := _ASSIGNED.search(text, position):
        position = assigned.end("close")  # what follows another key may be a key itself: "logger: password=…"
        if not is_secret(assigned["key"].strip("-")):
            continue
        value = _VALUE.match(text, assigned.end())
        if value is None or not _hides(assigned["key"], value.group()):
            continue
        position = value.end()
        shown = _masked_value(value.group())
        if not literals_only or shown != MASK:
            parts += [text[copied : value.start()], shown]
            copied = position
    return "".join([*parts, text[copied:]]) if parts else text


def _masked_setting(match: re.Match[str]) -> str:
    if not _hides(match["key"].strip(" \t+-"), match["value"].split()[0]):
        return match.group()
    return match["key"] + match["sep"] + MASK


def _masked_option(match: re.Match[str]) -> str:
    return match["option"] + match["space"] + MASK if _hides(match["option"], match["value"]) else match.group()


def _masked_value(value: str) -> str:
    """Return the mask in the quotes and brackets of `value`, or bare if it has none or holds no string."""
    if value[-1] in "\"'":
        quote = value[-1]
        return value[: value.index(quote)] + quote + MASK + quote
    return f'["{MASK}"]' if value[0] == "[" and ('"' in value or "'" in value) else MASK


def _hides(key: str, value: str) -> bool:
    if not is_secret(key.strip("-")) or value.strip(" \t'\"").lower() in _NOTHING | {""}:
        return False
    if _PLACEHOLDER.fullmatch(value.strip("'\"")):
        return False
    return not _NUMBER.fullmatch(value) or names_secret_number(key.strip("-"))


def mask_command(arguments: Sequence[str]) -> list[str]:
    """Return a command line, one string per argument, with the values of ``--api-key=…`` and ``--api-key …`` masked."""
    masked = []
    secret_follows = False
    for argument in arguments:
        option, equals, _ = argument.partition("=")
        hidden = is_secret(option.lstrip("-+"))
        if secret_follows and not argument.startswith("-"):
            masked.append(MASK)
        else:
            masked.append(f"{option}={MASK}" if equals and hidden else mask_text(argument))
        secret_follows = hidden and not equals and argument.startswith("-")
    return masked


def mask_uri(uri: str) -> str:
    """Return `uri` with its user name, password and secret query values replaced by ``***``."""
    parts = urlsplit(uri)
    netloc = f"{MASK}@{parts.netloc.rpartition('@')[2]}" if "@" in parts.netloc else parts.netloc
    query = "&".join(
        f"{item.partition('=')[0]}={MASK}" if "=" in item and is_secret(item.partition("=")[0]) else item
        for item in parts.query.split("&")
    )
    if netloc == parts.netloc and query == parts.query:
        return uri  # urlunsplit would rewrite sqlite:////path
    return urlunsplit(parts._replace(netloc=netloc, query=query))


def without_credentials(remote: str) -> str:
    """Return a git remote without user name, password and query; ``git@host:path`` stays as it is."""
    if "://" not in remote:
        return mask_text(remote)
    parts = urlsplit(remote)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))
