"""A server tells its limits, and refuses what exceeds them, with the name of the limit."""

import pytest

from gregor.config import Settings, load
from gregor.errors import SetupError
from gregor.limits import DEFAULT_LIMITS, SETTINGS
from tests.server.harness import jwt_settings, open_settings, serving, token


def test_settings_have_the_defaults_of_the_limits() -> None:
    assert Settings().limits == DEFAULT_LIMITS


@pytest.mark.parametrize("name", SETTINGS)
def test_each_limit_is_a_setting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"GREGOR_{name.upper()}", "7")
    assert getattr(load().limits, name) == 7


def test_limit_that_is_negative_is_refused() -> None:
    with pytest.raises(SetupError, match="setting `live_items`"):
        load(live_items=-1)


async def test_limits_are_told_to_devices_and_to_callers_with_a_token() -> None:
    settings = jwt_settings(ranges=7, messages_per_second=0)
    async with serving(settings) as served:
        headers = {"Authorization": f"Bearer {token('u')}"}
        told = (await served.http.get("/v1/limits", headers=headers)).json()
        assert told["ranges"] == 7
        assert told["messages_per_second"] == 0
        assert told["ids_days"] == 400
        assert (await served.http.get("/v1/limits")).status_code == 401


async def test_consume_has_no_more_messages_than_the_rate_ever_takes_at_once() -> None:
    async with serving(open_settings(messages_per_second=2)) as served:
        assert (await served.http.get("/v1/limits")).json()["messages"] == 20
