"""Who is asking, and what they may do."""

from enum import StrEnum
from typing import NamedTuple, Protocol

import jwt
from jwt.exceptions import InvalidTokenError

from gregor.core.instant import SECOND, Time
from gregor.core.message import UID, check_text
from gregor.errors import Forbidden, InvalidMessage, SetupError, Unauthenticated

ALGORITHM = "HS256"
SHORTEST_SECRET = 32


class Role(StrEnum):
    """A device reads and writes its own user; a service reads and writes for anyone."""

    DEVICE = "device"
    SERVICE = "service"


class Identity(NamedTuple):
    """Whose token it is. `expires_at` is when the token ends, if it does."""

    uid: UID
    role: Role
    expires_at: Time | None = None

    def may_touch(self, uid: UID) -> bool:
        return self.role is Role.SERVICE or self.uid == uid

    def checked(self) -> "Identity":
        """The same, if a device's names a user; raises Unauthenticated if it does not."""
        try:
            if self.role is Role.DEVICE:
                check_text("uid", self.uid, 128)
        except InvalidMessage as error:
            raise Unauthenticated(f"the token names no user: {error}") from error
        return self

    def require(self, uid: UID) -> None:
        """Raises Forbidden unless the user's state is this caller's to read and write."""
        if not self.may_touch(uid):
            raise Forbidden("this token is another user's", field="uid")


class Authenticator(Protocol):
    """Tells whose token it is."""

    def identify(self, token: str | None) -> Identity:
        """Raises Unauthenticated if the token does not hold, or if there is none and one is
        needed. Never waits."""
        ...


class OpenAuthenticator:
    """For one's own machine: a token is the bare uid, and HTTP needs none."""

    def identify(self, token: str | None) -> Identity:
        return Identity(token, Role.DEVICE).checked() if token else Identity("", Role.SERVICE)


class JWTAuthenticator:
    """Signed tokens, with the claims `sub` (the uid), `role`, and perhaps `exp`."""

    def __init__(self, secret: str) -> None:
        self._secret = checked_secret(secret)

    def identify(self, token: str | None) -> Identity:
        if not token:
            raise Unauthenticated("a token is needed: Authorization: Bearer TOKEN")
        try:
            claims = jwt.decode(
                token, self._secret, algorithms=[ALGORITHM], options={"require": ["sub"]}
            )
            expires_at = claims["exp"] * SECOND if "exp" in claims else None
            role = Role(claims.get("role", Role.DEVICE))
            return Identity(claims["sub"], role, expires_at).checked()
        except (InvalidTokenError, ValueError) as error:
            raise Unauthenticated(f"the token does not hold: {error}") from error


def make_token(secret: str, identity: Identity) -> str:
    """A token that a JWTAuthenticator with the same secret accepts."""
    claims: dict[str, object] = {"sub": identity.uid, "role": identity.role.value}
    if identity.expires_at is not None:
        claims["exp"] = identity.expires_at // SECOND
    return jwt.encode(claims, checked_secret(secret), algorithm=ALGORITHM)


def checked_secret(secret: str) -> str:
    if len(secret.encode()) < SHORTEST_SECRET:
        raise SetupError(
            f"the JWT secret has {len(secret.encode())} bytes and needs {SHORTEST_SECRET}: "
            "make one with `openssl rand -hex 32`"
        )
    return secret
