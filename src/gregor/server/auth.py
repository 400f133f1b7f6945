"""Authentication and authorization: the identity of a caller, and what it may access."""

import base64
import math
import secrets
from collections.abc import Callable
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple, Protocol

import jwt
import msgspec
from jwt.exceptions import InvalidTokenError
from msgspec import UNSET, Struct, UnsetType

from gregor import clock
from gregor.core.admission import check_id, check_text
from gregor.core.instant import MAX_TIME, SECOND, Time
from gregor.core.message import UID
from gregor.errors import Forbidden, InvalidMessage, NotYetValid, Unauthenticated
from gregor.interfaces import HOLDS_FOREVER, Caller
from gregor.server.jwt_secret import validated_secret

ALGORITHM = "HS256"
LEEWAY = 30 * SECOND  # by which the clocks of an issuer and a server may differ
REMEMBERED_TOKENS = 10_000


class Role(StrEnum):
    """A device reads and writes the state of its own user; a service that of all users."""

    DEVICE = "device"
    SERVICE = "service"


class Identity(NamedTuple):
    """The caller that a token identifies. `expires_at` is when the token expires; None if never.

    `issued_at` is when it was issued; None if that is not known. Once a user was erased, no token
    holds for the user's devices that was issued up to the second of the erase, or of which it is
    not known when. So an Authenticator should set it: for a session, to when the session began.
    With HOLDS_FOREVER, no erase ends the token."""

    uid: UID
    role: Role
    expires_at: Time | None = None
    issued_at: Time | None = None

    def may_access(self, uid: UID) -> bool:
        return self.role is Role.SERVICE or self.uid == uid

    @property
    def accepted_until(self) -> Time | None:
        """When a connection with this token ends; None if never."""
        return None if self.expires_at is None else self.expires_at + LEEWAY

    @property
    def caller(self) -> Caller:
        """Who sends what comes with this token, as far as the token says it."""
        return Caller(self.uid, is_service=self.role is Role.SERVICE)

    def validated(self) -> "Identity":
        """This identity. Raises Unauthenticated if it is a device's and its uid is invalid, and
        TypeError if an authenticator has given something else than a time as one of its times."""
        if not isinstance(self.expires_at, int | None):
            raise TypeError("expires_at is not a time in microseconds")
        if not isinstance(self.issued_at, int | None):
            raise TypeError("issued_at is not a time in microseconds")
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

    def require_service(self, what: str) -> None:
        """Raises Forbidden, saying what a device may not do, unless this is a service."""
        if self.role is not Role.SERVICE:
            raise Forbidden(f"a device may not {what}; use a token with the role `service`")


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
        if not token:
            return Identity("", Role.SERVICE)
        return Identity(token, Role.DEVICE, issued_at=HOLDS_FOREVER)


class _Claims(Struct):
    """The claims of a token that are read here. Times are seconds since the Unix epoch."""

    sub: UID
    role: Role = Role.DEVICE
    exp: float | UnsetType = UNSET
    nbf: float | UnsetType = UNSET
    iat: float | UnsetType = UNSET


class JWTAuthenticator:
    """Signed tokens with the claim `sub` (the uid) and the optional claims `role`, `exp`, `nbf` and
    `iat`. The clock of the issuer may differ from this server's by LEEWAY."""

    def __init__(self, secret: str, clock: Callable[[], Time] = clock.now) -> None:
        self._key = _key(validated_secret(secret))
        self._clock = clock
        # A user's devices come with the same token again and again, and to verify one takes a third
        # of the time of a request. What it says about time is compared each time.
        self._claims = lru_cache(REMEMBERED_TOKENS)(self._verified_claims)

    async def identify(self, token: str | None) -> Identity:
        """As Authenticator says. Raises NotYetValid if the token is signed and not valid yet."""
        if not token:
            raise Unauthenticated("a token is needed: Authorization: Bearer TOKEN")
        claims = self._claims(token)
        expires_at = _time(claims.exp)
        if expires_at is not None and expires_at + LEEWAY <= self._clock():
            raise Unauthenticated("the token has expired")
        issued_at = _time(claims.iat)
        for valid_from in (_time(claims.nbf), issued_at):
            if valid_from is not None and valid_from - LEEWAY > self._clock():
                raise NotYetValid("the token is not valid yet; compare the clocks")
        return Identity(claims.sub, claims.role, expires_at, issued_at)

    def _verified_claims(self, token: str) -> _Claims:
        # The library converts a time of another type, or fails with an error of another kind, so
        # times are read and compared here.
        try:
            decoded = jwt.decode(
                token,
                self._key,
                algorithms=[ALGORITHM],
                options={
                    "require": ["sub"],
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
            return msgspec.convert(decoded, _Claims)
        except (InvalidTokenError, ValueError, OverflowError, RecursionError) as error:
            raise Unauthenticated(f"the token is invalid: {error}") from error


def _key(secret: str) -> jwt.PyJWK:
    """The secret as a key that is prepared once, and not for each token."""
    k = base64.urlsafe_b64encode(secret.encode()).rstrip(b"=").decode()
    return jwt.PyJWK({"kty": "oct", "k": k}, ALGORITHM)


def _time(seconds: float | UnsetType) -> Time | None:
    """The time of a claim, within what a time can be; None if the token has no such claim. Raises
    Unauthenticated if it is not a number."""
    if seconds is UNSET:
        return None
    if math.isnan(seconds):
        raise Unauthenticated("the token is invalid: a time in it is not a number")
    return round(min(max(seconds, 0), MAX_TIME // SECOND) * SECOND)


def make_token(secret: str, identity: Identity) -> str:
    """A token that a JWTAuthenticator with the same secret accepts, with an id of its own. It says
    that it is issued now, unless the identity has another time. Raises SetupError if the secret is
    too easy to guess."""
    issued_at = clock.now() if identity.issued_at is None else identity.issued_at
    claims: dict[str, object] = {
        "sub": identity.uid,
        "role": identity.role.value,
        "iat": issued_at // SECOND,
        "jti": secrets.token_hex(16),
    }
    if identity.expires_at is not None:
        claims["exp"] = identity.expires_at // SECOND
    return jwt.encode(claims, validated_secret(secret), algorithm=ALGORITHM)
