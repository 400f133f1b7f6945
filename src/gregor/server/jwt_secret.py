"""Which secrets may sign tokens: a caller who guesses it can write as anybody."""

from gregor.errors import SetupError

MIN_BYTES = 32
MIN_DISTINCT = 6
MAX_PERIOD = 8
ADVICE = "make one with `openssl rand -hex 32`, and set GREGOR_JWT_SECRET to it"

_PLACEHOLDERS = ("changeme", "replaceme", "yoursecret", "your256bitsecret", "examplesecret")
_PUBLISHED = frozenset(
    {
        "astringsecretatleast256bitslong",  # of the page of jwt.io
        "astringsecretatleast512bitslongbecausewhynot",
    }
)


def validated_secret(secret: str) -> str:
    """The secret. Raises SetupError if it is too short, known, or so regular that it is guessed.
    That it is random cannot be seen; but what people type when they are asked for 32 bytes can."""
    if problem := _problem_of(secret):
        raise SetupError(f"the JWT secret {problem}: {ADVICE}", field="jwt_secret")
    return secret


def _problem_of(secret: str) -> str | None:
    size = len(secret.encode())
    letters = "".join(filter(str.isalnum, secret.lower()))
    if not secret:
        return "is empty"
    if size < MIN_BYTES:
        return f"has {size} bytes and needs {MIN_BYTES}"
    if letters in _PUBLISHED or any(text in letters for text in _PLACEHOLDERS):
        return "is a known one, of an example"
    if len(set(secret)) < MIN_DISTINCT:
        return f"has fewer than {MIN_DISTINCT} different characters"
    if _repeats(secret):
        return f"repeats a pattern of at most {MAX_PERIOD} characters"
    return None


def _repeats(secret: str) -> bool:
    return any(secret[period:] == secret[:-period] for period in range(1, MAX_PERIOD + 1))
