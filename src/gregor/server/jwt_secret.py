"""Which secrets may sign tokens: a caller who guesses it can write as anybody."""

from itertools import pairwise

from gregor.errors import SetupError

MIN_BYTES = 32
MIN_DISTINCT = 6
ADVICE = "make one with `openssl rand -hex 32`, and set GREGOR_JWT_SECRET to it"

_PLACEHOLDERS = (
    *("changeme", "changethis", "replaceme", "replacethis", "yoursecret", "your256bitsecret"),
    *("examplesecret", "supersecret", "thissecret", "mysecret", "topsecret"),
)
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
        return "repeats a pattern"
    if _counts(secret):
        return "mostly counts, or repeats one character"
    return None


def _repeats(secret: str) -> bool:
    """Whether it is one pattern, twice or more often."""
    return any(secret[period:] == secret[:-period] for period in range(1, len(secret) // 2 + 1))


def _counts(secret: str) -> bool:
    """Whether three quarters are the characters before them again, or the next to those."""
    steps = [abs(ord(after) - ord(before)) for before, after in pairwise(secret)]
    return 4 * sum(step <= 1 for step in steps) > 3 * len(steps)
