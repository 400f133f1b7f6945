"""The OpenAPI document is valid, and matches what the server does."""

import json
from typing import Any

import httpx
import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from gregor.protocol.requests import MAX_USERS
from gregor.server.openapi import describe
from tests.server.harness import Served, creation, open_settings, serving, to

pytestmark = pytest.mark.asyncio(loop_scope="module")


def check(answer: httpx.Response, path: str, method: str = "get") -> None:
    """Validate the answer against the description of this path."""
    document = describe()
    described = document["paths"][path][method]["responses"][str(answer.status_code)]
    media_type = answer.headers["content-type"].partition(";")[0]
    if "content" in described:
        content = described["content"][media_type]
        schema = {**content["schema"], "components": document["components"]}
        if media_type.endswith("json"):
            OAS31Validator(schema).validate(answer.json())


async def test_served_document_is_valid_openapi(shared: Served) -> None:
    document = (await shared.http.get("/openapi.json")).json()
    OpenAPIV31SpecValidator(document).validate()
    limits = shared.server.service.limiter.limits
    assert document == json.loads(json.dumps(describe(limits)))


async def test_served_document_states_the_limits_of_the_server() -> None:
    async with serving(open_settings(uids=5, ranges=0, prefixes=3)) as served:
        document = (await served.http.get("/openapi.json")).json()
        schemas = document["components"]["schemas"]
        assert schemas["MultiUserRequest"]["properties"]["uids"]["maxItems"] == 5
        assert "maxItems" not in schemas["Dismissal"]["properties"]["ranges"]
        assert schemas["BatchRequest"]["properties"]["messages"]["maxItems"] == 500
        parameters = document["paths"]["/v1/users/{uid}/count"]["get"]["parameters"]
        (prefix,) = (each for each in parameters if each.get("name") == "prefix")
        assert prefix["schema"]["maxItems"] == 3


async def test_every_described_path_answers_as_described(shared: Served) -> None:
    document = describe()
    await shared.post(to("u", msg_id="m", device_id="d"))
    for path, methods in document["paths"].items():
        for method in methods:
            url = path.replace("{uid}", "u")
            if path.endswith("events"):
                async with shared.http.stream("GET", url) as answer:
                    check(answer, path)
            elif method == "post":
                body = to("u") if path == "/v1/messages" else {}
                check(await shared.http.post(url, json=body), path, "post")
            else:
                check(await shared.http.request(method, url), path, method)


VALID_BODIES = [
    to("u", "c", {"any": ["thing"]}, msg_id="a", device_id="d"),
    {"uid": "u", "dismissal": {"msg_ids": ["a"], "ranges": [{"category": "c", "prefix": True}]}},
    {"uid": "u", "creation": {"category": "c", "body": None, "expires": {"offset": "1h"}}},
    {
        "uid": "u",
        "creation": {"category": "c", "body": 1, "key": "k", "starts": {"offset": "1h"}},
        "dismissal": {
            "keys": [{"key": "a"}, {"key": "b", "end_time": {"offset": -1}}],
            "ranges": [{"category": "c", "scheduled": True}],
        },
    },
    {"uid": "u", "system": "s", "body": 1},
    {"messages": [to("u"), {"broken": True}]},
    {"uids": ["u", "v"], "message": creation()},
]


@pytest.mark.parametrize("body", VALID_BODIES)
async def test_valid_body_matches_schema_and_is_accepted(shared: Served, body: Any) -> None:
    document = describe()
    request = document["paths"]["/v1/messages"]["post"]["requestBody"]["content"]
    schema = {**request["application/json"]["schema"], "components": document["components"]}
    OAS31Validator(schema).validate(body)
    answer = await shared.post(body)
    assert answer.status_code == 200
    check(answer, "/v1/messages", "post")


@pytest.mark.parametrize(
    "body", [{}, to(""), {"messages": []}, {"uids": ["u"] * (MAX_USERS + 1), "message": creation()}]
)
async def test_rejected_body_answers_as_described(shared: Served, body: Any) -> None:
    check(await shared.post(body), "/v1/messages", "post")


async def test_state_count_and_messages_answer_as_described(shared: Served) -> None:
    dismissed = {"category": "c", "end_time": {"offset": "-5m"}, "skip_msg_ids": ["x"]}
    message = {**to("w", msg_id="m"), "dismissal": {"msg_ids": ["y"], "ranges": [dismissed]}}
    message["creation"]["expires"] = {"offset": "P1D"}
    await shared.post(message)
    user = "/v1/users/{uid}"
    check(await shared.http.get("/v1/users/w/state"), f"{user}/state")
    key = {**to("w"), "creation": {"category": "c", "body": 1, "key": "k", "starts": {"offset": 0}}}
    await shared.post(key)
    page = await shared.http.get("/v1/users/w/state?key=k&limit=1&order=newest&prefix=c&prefix=d")
    check(page, f"{user}/state")
    check(await shared.http.get("/v1/users/w/state?limit=1"), f"{user}/state")
    other = await shared.http.get("/v1/users/w/state?page=other")
    assert other.status_code == 400
    check(other, f"{user}/state")
    check(await shared.http.get("/v1/users/w/messages"), f"{user}/messages")
    ahead = await shared.http.get("/v1/users/w/messages?after=9007199254740991")
    assert ahead.status_code == 409
    check(ahead, f"{user}/messages")
    check(await shared.http.get("/v1/users/w/count?prefix=c"), f"{user}/count")
    check(await shared.http.get("/v1/users/w/state?at=nonsense"), f"{user}/state")
    check(await shared.http.get("/v1/users//events"), f"{user}/events")
