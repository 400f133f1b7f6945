"""The examples of the README work as they are written."""

import asyncio
import re
import sys
from pathlib import Path

import pytest

from tests.server.harness import Served, serving

README = Path(__file__).parents[1] / "README.md"
BACKEND, ASYNC_BACKEND, DEVICE = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def with_test_address(code: str, served: Served) -> str:
    """The code, with the address of the server of this test."""
    assert code.count("http://127.0.0.1:9911") == 1
    return code.replace("http://127.0.0.1:9911", str(served.http.base_url))


async def categories(served: Served) -> list[str]:
    items = (await served.http.get("/v1/users/alice/state")).json()["items"]
    return [item["category"] for item in items]


async def test_readme_backend_injects_messages() -> None:
    async with serving() as served:
        await asyncio.to_thread(exec, with_test_address(BACKEND, served), {})
        assert await categories(served) == ["invoices", "settings.theme"]


async def test_readme_asynchronous_backend_injects_and_counts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with serving() as served:
        await asyncio.to_thread(exec, with_test_address(ASYNC_BACKEND, served), {})
        assert "{'chat.unread': 1, 'invoices': 0}" in capsys.readouterr().out


async def test_readme_device_holds_a_replica(tmp_path: Path) -> None:
    async with serving() as served, await served.synced("alice", "phone") as phone:
        device = await asyncio.create_subprocess_exec(
            sys.executable, "-u", "-c", with_test_address(DEVICE, served), cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            assert device.stdout is not None
            assert await device.stdout.readline() == b"0\n"
            (message,) = (await phone.receive_type("messages"))["messages"]
            assert message["creation"]["category"] == "notes"
            assert b"Online" in await device.stdout.readline()
        finally:
            device.terminate()
            await device.wait()


async def test_readme_curl_requests_succeed() -> None:
    (content,) = re.findall(r"curl localhost:9911/v1/messages -d '(.*?)'", README.read_text(), re.S)
    paths = re.findall(r"curl '?localhost:9911(/v1/users[^\s']+)", README.read_text())
    async with serving() as served:
        (result,) = (await served.http.post("/v1/messages", content=content)).json()["results"]
        assert result["status"] == "stored"
        answers = [await served.http.get(path) for path in paths]
        assert [answer.status_code for answer in answers] == [200, 200]
