"""What is not a message, nor a uid, and often not JSON: for the laws that it costs itself alone."""

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

# As the body of a message, or in the place of a message or of a uid.
NOT_JSON = {
    "half of a surrogate pair": rb'"cut \ud83d"',
    "NaN": b"NaN",
    "minus infinity": b"-Infinity",
    "a number beyond every float": b"1e400",
    "a number of 5,000 digits": b"9" * 5_000,
    "bytes that are not UTF-8": b'"\xff"',
    "a surrogate in UTF-8": b'"\xed\xa0\x80"',
    "a control character": b'"\x01"',
    "brackets, quotes and commas in a string that is no JSON": rb'"]},{\"[\\\x"',
    "an unknown escape": rb'"\x"',
    "100,000 brackets": b"[" * 100_000 + b"]" * 100_000,
    "brackets of two kinds": b"[[}}",
    "a trailing comma": b"[1,]",
    "a comment": b"/* note */ 1",
    "nothing": b"",
    "words": b"half a truth",
}


def closed_garbage() -> SearchStrategy[bytes]:
    """Any bytes whose brackets and quotes are closed."""
    plain = st.binary().map(lambda text: bytes(byte for byte in text if byte not in b'[]{}",\\'))
    string = st.binary().map(lambda text: b'"' + text.replace(b"\\", b"").replace(b'"', b"") + b'"')
    return st.recursive(
        plain | string,
        lambda inner: st.builds(
            lambda opening, parts, closing: opening + b",".join(parts) + closing,
            st.sampled_from([b"[", b"{"]),
            st.lists(inner),
            st.sampled_from([b"]", b"}"]),
        ),
    )


def bad_entries() -> SearchStrategy[bytes]:
    """Bytes in the place of an entry that are neither a message nor the uid "u"."""
    garbage = closed_garbage().filter(lambda entry: entry.strip() != b'"u"')
    return st.sampled_from(sorted(NOT_JSON.values())) | garbage
