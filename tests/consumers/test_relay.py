"""The log throttle of the Relay. (tests/node/test_fleet.py tests the Relay itself.)"""

from gregor.consumers.relay import LogThrottle


def test_log_throttle_reports_first_event_at_once_and_later_ones_together() -> None:
    throttle = LogThrottle(10)
    assert throttle.count(0) == 1
    assert [throttle.count(now) for now in (1, 2, 9.9)] == [0, 0, 0]
    assert throttle.count(10) == 4
    assert throttle.count(15) == 0
    assert throttle.count(100) == 2
