"""Authentication and authorization: the identity of a caller, and what it may access."""

from enum import StrEnum
from typing import NamedTuple, Protocol

import jwt
from jwt.exceptions import InvalidTokenError

from gregor.core.admission import check_id, check_text
from gregor.core.instant import SECOND, Time
from gregor.core.message import UID
from gregor.errors import Forbidden, InvalidMessage, SetupError, Unauthenticated

ALGORITHM = "HS256"
MIN_SECRET_BYTES = 32


class Role(StrEnum):
    """A device reads and writes the state of its own user; a service that of all users."""

    DEVICE = "device"
    SERVICE = "service"


class Identity(NamedTuple):
    """The caller that a token identifies. `expires_at` is when the token expires; None if never."""

    uid: UID
    role: Role
    expires_at: Time | None = None

    def may_access(self, uid: UID) -> bool:
        return self.role is Role.SERVICE or self.uid == uid

    def validated(self) -> "Identity":
        """This identity. Raises Unauthenticated if it is a device's and its uid is invalid."""
        try:
            if self.role is Role.DEVICE:
                check_text("uid", self.uid, 128)
                check_id("uid", self.uid)
        except InvalidMessage as error:
            raise Unauthenticated(f"the token has no valid uid: {error}") from error
        return self

    def require_access(self, uid: UID) -> None:
        """Raises Forbidden unless this caller may read and write the user's state."""
        if not self.may_access(uid):
            raise Forbidden("this token belongs to another user", field="uid")


class Authenticator(Protocol):
    """Verifies tokens."""

    async def identify(self, token: str | None) -> Identity:
        """The identity of the token's owner. Raises Unauthenticated if the token is invalid or
        expired, or if it is missing and required; Unavailable if that cannot be found out now.

        It may wait, for example for a database of sessions. The wait counts towards the hello
        time-out of a device, and is cancelled after some seconds: the caller then gets Unavailable.
        Any other exception is a bug: it ends this one connection or request with the error
        `internal`, and is logged without its message, which may contain the token.
        """
        ...


class OpenAuthenticator:
    """For development on one machine: a token is the plain uid, and HTTP needs no token."""

    async def identify(self, token: str | None) -> Identity:
        return Identity(token, Role.DEVICE) if token else Identity("", Role.SERVICE)


class JWTAuthenticator:
    """Signed tokens with the claim `sub` (the uid) and the optional claims `role` and `exp`."""

    def __init__(self, secret: str) -> None:
        self._secret = validated_secret(secret)

    async def identify(self, token: str | None) -> Identity:
        if not token:
            raise Unauthenticated("a token is needed: Authorization: Bearer TOKEN")
        try:
            claims = jwt.decode(
                token, self._secret, algorithms=[ALGORITHM], options={"require": ["sub"]}
            )
            expires_at = claims["exp"] * SECOND if "exp" in claims else None
            role = Role(claims.get("role", Role.DEVICE))
            return Identity(claims["sub"], role, expires_at)
        except (InvalidTokenError, ValueError) as error:
            raise Unauthenticated(f"the token is invalid or has expired: {error}") from error


def make_token(secret: str, identity: Identity) -> str:
    """A token that a JWTAuthenticator with the same secret accepts. Raises SetupError if the
    secret is too short."""
    claims: dict[str, object] = {"sub": identity.uid, "role": identity.role.value}
    if identity.expires_at is not None:
        claims["exp"] = identity.expires_at // SECOND
    return jwt.encode(claims, validated_secret(secret), algorithm=ALGORITHM)


def validated_secret(secret: str) -> str:
    if len(secret.encode()) < MIN_SECRET_BYTES:
        raise SetupError(
            f"the JWT secret has {len(secret.encode())} bytes and needs {MIN_SECRET_BYTES}: "
            "make one with `openssl rand -hex 32`"
        )
    return secret
