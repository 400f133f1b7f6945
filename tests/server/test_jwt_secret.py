"""Which secrets start a server, and which do not."""

import base64
import secrets

import pytest
from pydantic import SecretStr

from gregor.config import Auth
from gregor.errors import SetupError
from gregor.server import Server
from gregor.server.auth import Identity, Role, make_token
from gregor.server.jwt_secret import validated_secret
from tests.server.harness import open_settings

REFUSED = [
    ("", "is empty"),
    ("x" * 31, "has 31 bytes and needs 32"),
    ("short", "has 5 bytes"),
    ("ä" * 15 + "x", "has 31 bytes"),
    ("a" * 32, "different characters"),
    (" " * 32, "different characters"),
    ("0" * 64, "different characters"),
    ("ab" * 20, "different characters"),
    ("0123456" * 6, "repeats a pattern"),
    ("password" * 4, "repeats a pattern"),
    ("Passw0rd" * 4, "repeats a pattern"),
    ("12345678" * 4, "repeats a pattern"),
    ("12345678" * 4 + "123", "repeats a pattern"),
    ("change-me-as-well-it-takes-32-bytes", "is a known one"),  # was in deploy/gregor.env.example
    ("changeme" * 4, "is a known one"),
    ("CHANGE_ME_0123456789abcdefghijklmnop", "is a known one"),
    ("please change me, I am 32 bytes long", "is a known one"),
    ("your-256-bit-secret-your-256-bit-secret", "is a known one"),
    ("a-string-secret-at-least-256-bits-long", "is a known one"),
    ("a-string-secret-at-least-512-bits-long-because-why-not", "is a known one"),
]


@pytest.mark.parametrize(("secret", "reason"), REFUSED)
def test_secret_that_is_known_or_guessed_starts_no_server(secret: str, reason: str) -> None:
    settings = open_settings(auth=Auth.JWT, jwt_secret=SecretStr(secret))
    with pytest.raises(SetupError, match=reason) as raised:
        Server.from_settings(settings)
    assert "openssl rand -hex 32" in raised.value.message
    assert len(secret) < 10 or secret not in raised.value.message
    with pytest.raises(SetupError, match=reason):
        make_token(secret, Identity("alice", Role.DEVICE))


def test_secret_as_tools_make_it_starts_a_server() -> None:
    for _ in range(300):
        for made in (
            secrets.token_hex(32),  # as openssl rand -hex 32
            base64.b64encode(secrets.token_bytes(32)).decode(),
            secrets.token_urlsafe(24),
            "".join(secrets.choice("0123456789") for _ in range(32)),
        ):
            assert validated_secret(made) == made
