"""No secret in a URL is shown, wherever it is, and whether or not it is percent-encoded."""

import string
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gregor.urls import redacted


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:///data/gregor.db", "sqlite:///data/gregor.db"),
        ("sqlite:////home/u@host/a?b#c", "sqlite:////home/u@host/a?b#c"),
        ("sqlite://", "sqlite://"),
        ("postgresql://host:5432/db", "postgresql://host:5432/db"),
        ("postgresql://u:p@host1:1,[::1]:2/db", "postgresql://u:***@host1:1,[::1]:2/db"),
        ("postgresql://u@/db?host=/run/postgresql", "postgresql://u@/db"),
        ("postgres://u:@host/db", "postgres://u:@host/db"),
        ("postgresql+asyncpg://u@a,b/db?password=p", "postgresql+asyncpg://u@a,b/db"),
        ("file:///run/secrets/a@b", "file:///run/secrets/a@b"),
        ("redis://:p@host:6379/0", "redis://:***@host:6379/0"),
        ("nats://token@host:4222", "nats://***@host:4222"),
        ("nats://token:@host:4222", "nats://***@host:4222"),
        ("unix:///run/redis.sock?password=p", "unix:///run/redis.sock"),
        ("nats://u:p@host1,nats://u:p@host2", "nats://u:***@host2"),
        ("localhost", "localhost"),
        ("", ""),
    ],
)
def test_what_is_no_secret_is_shown(url: str, shown: str) -> None:
    assert redacted(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:secret@host/db?password=secret&sslpassword=secret",
        "postgresql://u:sec/secret@host/db",
        "postgresql://u:sec@secret@host/db",
    ],
)
def test_password_is_hidden_where_its_end_is_known(url: str) -> None:
    assert redacted(url) == "postgresql://u:***@host/db"


@pytest.mark.parametrize(
    "url",
    [
        "redis://u:sec?ret@host",
        "redis://u:sec#ret@host",
        "redis://host?password=sec@ret",
        "redis://u:secret@host?password=sec@ret",
    ],
)
def test_scheme_alone_is_shown_where_the_end_of_a_password_is_unknown(url: str) -> None:
    assert redacted(url) == "redis://…"


# Secrets are in upper case and all else in lower case, so any part of a secret is found.
raw_secrets = st.text(string.ascii_uppercase + ":/?#@[]%&=, \n", min_size=1)
secrets = raw_secrets | raw_secrets.map(lambda secret: quote(secret, safe="").replace("%", "-"))
schemes_with_tokens = st.sampled_from(["redis://", "nats://", "tls://", "unix://", "kafka://", ""])
schemes = st.sampled_from(["postgresql://", "postgres://"]) | schemes_with_tokens
users = st.sampled_from(["", "user"])
locations = st.sampled_from(["", "host", "host:1/db", "host1:1,host2:2/db", "[::1]:1", "/run/s"])
options = st.sampled_from(["", "?a=b", "#c", "?a=b#c"])


def assert_hides_secrets(url: str) -> None:
    assert not set(redacted(url)) & set(string.ascii_uppercase)


@given(schemes, users, secrets, locations, options)
def test_no_part_of_a_password_is_shown(
    scheme: str, user: str, secret: str, location: str, options: str
) -> None:
    assert_hides_secrets(f"{scheme}{user}:{secret}@{location}{options}")


@given(schemes_with_tokens, secrets, st.sampled_from(["", ":"]), locations, options)
def test_no_part_of_a_token_is_shown(
    scheme: str, secret: str, end: str, location: str, options: str
) -> None:
    token = secret.replace(":", "")  # what follows a colon is a password
    assert_hides_secrets(f"{scheme}{token}{end}@{location}{options}")


@given(
    schemes,
    st.sampled_from(["", "user@", "user:"]),
    st.lists(secrets, min_size=1, max_size=3),
    locations,
    st.sampled_from("?#"),
)
def test_no_part_of_an_option_is_shown(
    scheme: str, start: str, values: list[str], location: str, mark: str
) -> None:
    password = f"{values[0]}@" if start.endswith(":") else ""
    passwords = "&".join(f"password={value}" for value in values)
    assert_hides_secrets(f"{scheme}{start}{password}{location}{mark}{passwords}")
