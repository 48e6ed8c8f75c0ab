"""Secrets are recognised by name or form; texts that only look like secrets are kept."""

from __future__ import annotations

import time

import hypothesis
import pytest
from hypothesis import strategies as st

from tracking_callbacks._values.conversion import to_jsonable
from tracking_callbacks._values.secrets import (
    _mask_patterns,
    is_secret,
    mask_command,
    mask_text,
    mask_uri,
    without_credentials,
)


@pytest.mark.parametrize(
    "key",
    [
        "hub_token",
        "token",
        "password",
        "db.password",
        "AWS_SECRET_ACCESS_KEY",
        "api_key",
        "WANDB_API_KEY",
        "auth_token",
    ],
)
def test_secrets_are_known_by_their_key(key: str) -> None:
    assert to_jsonable({key: "hidden", "outer": {key: "hidden"}}) == {key: "***", "outer": {key: "***"}}


@pytest.mark.parametrize("key", ["pad_token", "eos_token_id", "tokenizer", "num_input_tokens_seen", "key", "monkey"])
def test_names_that_only_look_like_secrets_are_kept(key: str) -> None:
    assert not is_secret(key)
    assert to_jsonable({key: "shown"}) == {key: "shown"}


def test_credentials_in_uris_and_tokens_in_texts_are_masked() -> None:
    assert mask_uri("http://user:pw@host:5000/x") == "http://***@host:5000/x"
    assert mask_uri("sqlite:////tmp/a.db") == "sqlite:////tmp/a.db"
    assert mask_uri("postgresql://h/db?user=me&password=pw") == "postgresql://h/db?user=me&password=***"
    assert mask_text("see https://user:pw@host/a and hf_" + "a" * 30) == "see https://***@host/a and ***"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("INFO my.logger: password=hunter22 for bob", "INFO my.logger: password=*** for bob"),
        ("ValueError: api_key='k-1', retry", "ValueError: api_key='***', retry"),
        ("Authorization: Bearer abc.def-1", "Authorization: ***"),
        ("{'Authorization': 'Basic dXNlcjpwdw==', 'Accept': 'x'}", "{'Authorization': '***', 'Accept': 'x'}"),
        ("sent Bearer abc123def456 to them", "sent Bearer *** to them"),
        ("train.py --api-key k-1 --lr 3", "train.py --api-key *** --lr 3"),
        ("train.py --api-key=k-1 --lr=3", "train.py --api-key=*** --lr=3"),
        ("password: a pass phrase", "password: ***"),
        ("export AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG", "export AWS_SECRET_ACCESS_KEY=***"),
        ('{"clientSecret": "s-1", "n": 3}', '{"clientSecret": "***", "n": 3}'),
        ('"api_keys": [\n  "a",\n  "b"\n], "n": 3', '"api_keys": ["***"], "n": 3'),
        ("https://h/f?X-Amz-Signature=abcd&n=3&token=t-1", "https://h/f?X-Amz-Signature=***&n=3&token=***"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\nafter", "***\nafter"),
        ("AKIAIOSFODNN7EXAMPLE and github_pat_11AAAAAAAAAAAAAAAAAAAA", "*** and ***"),
        ("password: 1234", "password: ***"),
    ],
)
def test_secrets_in_texts_are_masked(text: str, masked: str) -> None:
    assert mask_text(text) == masked
    assert mask_text(masked) == masked


@pytest.mark.parametrize(
    "text",
    [
        "loss: 0.3, max_token: 512, num_input_tokens_seen=40",
        "Basic configuration of the tokenizer: pad_token=[PAD]",
        "token=None secret: null",
        "see https://example.com/a?page=3",
        '  File "/a/b.py", line 3, in main',
    ],
)
def test_ordinary_texts_are_unchanged(text: str) -> None:
    assert mask_text(text) == text


def test_in_source_code_literals_are_masked_and_names_are_kept() -> None:
    program = (
        'token = arguments.token\nhub_token: str = "t-1"\nos.environ["MY_API_KEY"] = f\'k-1\'\ncall(password=pw)\n'
    )

    assert mask_text(program, code=True) == (
        'token = arguments.token\nhub_token: str = "***"\nos.environ["MY_API_KEY"] = f\'***\'\ncall(password=pw)\n'
    )


def test_secrets_inside_string_literals_of_source_code_are_masked() -> None:
    program = 'connect("user=a password=pw-1 host=h", f"token={token} api_key=%s")'

    assert mask_text(program, code=True) == 'connect("user=a password=*** host=h", f"token={token} api_key=%s")'


def test_options_of_a_command_line_are_masked() -> None:
    command = ["train.py", "--api-key=k-1", "--token", "t-1", "--lr", "3", "db.password=pw", "http://u:p@h/", "--token"]

    assert mask_command(command) == [
        *("train.py", "--api-key=***", "--token", "***", "--lr", "3", "db.password=***", "http://***@h/", "--token"),
    ]


@pytest.mark.parametrize(
    ("remote", "shown"),
    [
        ("https://user:ghp_secret@github.com/a/b.git", "https://github.com/a/b.git"),
        ("https://token@github.com/a/b", "https://github.com/a/b"),
        ("git@github.com:a/b.git", "git@github.com:a/b.git"),
        ("/srv/git/b", "/srv/git/b"),
    ],
)
def test_a_remote_is_shown_without_credentials(remote: str, shown: str) -> None:
    assert without_credentials(remote) == shown


@pytest.mark.parametrize(
    "unit", ["a", "a=", "key: ", "-", " ", '"', "token=[", "token=[ ", "--a ", "://", "a: b ", "\\", "eyJ"]
)
def test_masking_takes_linear_time(unit: str) -> None:
    began = time.process_time()
    mask_text(unit * (200_000 // len(unit)))
    mask_text(unit * (200_000 // len(unit)), code=True)

    assert time.process_time() - began < 2  # linear time takes 0.1 s; quadratic time would take 20 s and more


PIECES = st.sampled_from(
    [
        "password=", "pwd: ", "--api-key ", "passphrase", "client_secret", "credentials", "Cookie:",
        "Authorization: ",
        "Bearer ", "Basic ", "Token ", "://", "@", "sig=", "hf_", "ghp_", "github_pat_", "glpat-", "sk-", "AKIA",
        "AIza", "0123456789abcdef",
        "xoxb-", "npm_", "pypi-", "dapi", "eyJ", "-----BEGIN RSA PRIVATE KEY-----", "abcdefgh12345678",
        ".", " ", "\n", "'", '"', "loss: 0.5", "step", "ü", "=", ":", "_", "-", "[", "]", "{", "}",
    ]
)  # fmt: skip


@hypothesis.given(st.lists(PIECES | st.text(max_size=5), max_size=8), st.booleans())
@hypothesis.settings(max_examples=500)
def test_the_quick_look_misses_nothing_that_the_patterns_mask(pieces: list[str], code: bool) -> None:
    text = "".join(pieces)

    assert mask_text(text, code=code) == _mask_patterns(text, code=code)
