"""Keys and tokens of NATS, as its tools `nk` and `nsc` make them: for tests."""

import base64
import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any

nkeys: Any = import_module("nkeys")  # it has no types

ALL = -1  # no limit


class KeyPair:
    """A random key pair of an operator, an account or a user."""

    def __init__(self, kind: int) -> None:
        self.seed = nkeys.encode_seed(os.urandom(32), kind).decode()
        self._pair = nkeys.from_seed(bytearray(self.seed, "ascii"))
        self.public = self._pair.public_key.decode()

    def token(self, subject: "KeyPair", name: str, **claims: Any) -> str:
        """A JWT about the subject, signed by this key."""
        header = {"typ": "JWT", "alg": "ed25519-nkey"}
        body = {
            "jti": name,
            "iat": 1_700_000_000,
            "iss": self.public,
            "sub": subject.public,
            "name": name,
            "nats": {"version": 2, **claims},
        }
        signed = f"{_base64(json.dumps(header).encode())}.{_base64(json.dumps(body).encode())}"
        return f"{signed}.{_base64(self._pair.sign(signed.encode()))}"


def operator() -> KeyPair:
    return KeyPair(nkeys.PREFIX_BYTE_OPERATOR)


def account() -> KeyPair:
    return KeyPair(nkeys.PREFIX_BYTE_ACCOUNT)


def user() -> KeyPair:
    return KeyPair(nkeys.PREFIX_BYTE_USER)


def write_server_with_accounts(directory: Path) -> tuple[Path, Path]:
    """The configuration of a server that accepts users of one account by their JWT, and the
    credentials file of one such user."""
    head, team, member = operator(), account(), user()
    limits = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), ALL)
    account_token = head.token(team, "team", type="account", limits={**limits, "wildcards": True})
    limits = dict.fromkeys(("subs", "data", "payload"), ALL)
    user_token = team.token(member, "member", type="user", **limits)
    configuration = directory / "server.conf"
    configuration.write_text(
        f"operator: {head.token(head, 'head', type='operator')}\n"
        f"resolver: MEMORY\nresolver_preload: {{ {team.public}: {account_token} }}\n"
    )
    credentials = directory / "user.creds"
    credentials.write_text(
        f"-----BEGIN NATS USER JWT-----\n{user_token}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{member.seed}\n------END USER NKEY SEED------\n"
    )
    return configuration, credentials


def _base64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
