"""Addresses that make errors are refused for a while, and their number is bounded."""

from hypothesis import given
from hypothesis import strategies as st

from gregor.server import peer_errors
from gregor.server.client_address import Networks
from gregor.server.peer_errors import PER_SECOND, PeerError, PeerErrors


def errors_at(clock: list[float], burst: int) -> PeerErrors:
    return PeerErrors(Networks.parse(["10.0.0.0/8"]), burst, lambda: clock[0])


@given(st.integers(1, 20), st.lists(st.floats(0, 2), max_size=60))
def test_law_no_address_makes_more_errors_than_its_bucket_allows(
    burst: int, pauses: list[float]
) -> None:
    clock = [0.0]
    errors = errors_at(clock, burst)
    made = 0
    for pause in pauses:
        clock[0] += pause
        for _ in range(30):
            if not errors.throttles("203.0.113.1"):
                errors.count(PeerError.PROTOCOL, "203.0.113.1")
                made += 1
        assert made <= burst + clock[0] * PER_SECOND + 1
    clock[0] += (burst + PER_SECOND) / PER_SECOND
    assert not errors.throttles("203.0.113.1")


def test_one_address_does_not_make_another_wait_unless_both_are_of_one_customer() -> None:
    errors = errors_at([0.0], burst=2)
    for _ in range(2):
        errors.count(PeerError.AUTHENTICATION, "2001:db8:1:1::1")
    assert errors.throttles("2001:db8:1:1::2")
    assert not errors.throttles("2001:db8:1:2::1")


def test_addresses_that_stand_for_many_users_are_never_refused() -> None:
    errors = errors_at([0.0], burst=1)
    for host in ("127.0.0.1", "::1", "10.1.2.3", "testclient", None):
        for _ in range(10):
            errors.count(PeerError.AUTHENTICATION, host)
        assert host is None or not errors.throttles(host)


def test_number_of_remembered_addresses_is_bounded() -> None:
    errors = errors_at([0.0], burst=1)
    for number in range(peer_errors.MAX_ADDRESSES + 10):
        errors.count(PeerError.HEAD, f"203.{number // 65536}.{number // 256 % 256}.{number % 256}")
    assert not errors.throttles("203.0.0.0")
    assert errors.throttles("203.0.0.10")
