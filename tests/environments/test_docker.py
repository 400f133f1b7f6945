"""The image and compose.yaml, without a container engine: the steps of the Dockerfile run in a
chroot, and docker-compose only reads and validates its file.
"""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.environments.image import DEPLOY, Image, debian
from tests.ports import free_port

NODES = ("gregor1", "gregor2")
SECRET = "0123456789abcdef" * 4
TIMEOUT_SECONDS = 120.0  # the first start reads every file of a new disk


@pytest.mark.timeout(900)
def test_image_is_built_and_serves_as_a_user_who_is_not_root() -> None:
    with debian() as root:
        image = Image(root)
        image.build()
        user, group = map(int, image.user.split(":"))
        assert user > 0
        port = free_port()
        process = image.start({"GREGOR_LISTEN": f"127.0.0.1:{port}"})
        try:
            wait_until(lambda: process.poll() is not None or image.is_healthy(port))
            assert process.poll() is None
            assert httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).is_success
            file = (root / "var/lib/gregor/gregor.db").stat()
            assert (file.st_uid, file.st_gid) == (user, group)
            process.send_signal(signal.SIGTERM)
            assert process.wait(TIMEOUT_SECONDS) == 0
            assert not image.is_healthy(port)
        finally:
            if process.poll() is None:
                process.kill()


def test_compose_file_is_valid_and_builds_what_it_rolls_out(tmp_path: Path) -> None:
    services = compose(tmp_path)["services"]
    for name in (*NODES, "migrate"):
        build = services[name]["build"]
        assert Path(build["context"], build["dockerfile"]).name == "Dockerfile"
        assert services[name]["image"] == services["gregor1"]["image"]
    for service in services.values():
        assert service.get("depends_on", {}).keys() <= services.keys()


def test_a_node_may_take_longer_to_stop_than_its_drain(tmp_path: Path) -> None:
    for name in NODES:
        service = compose(tmp_path)["services"][name]
        settings = service["environment"]
        lame_duck, drain = (
            float(settings[f"GREGOR_{which}_SECONDS"]) for which in ("LAME_DUCK", "DRAIN")
        )
        assert int(service["stop_grace_period"].removesuffix("s")) > lame_duck + 2 * drain + 11


def test_nothing_starts_with_the_example_as_it_is(tmp_path: Path) -> None:
    deploy = tmp_path / "deploy"
    shutil.copytree(DEPLOY, deploy)
    shutil.copyfile(DEPLOY / "gregor.env.example", deploy / "gregor.env")
    with pytest.raises(subprocess.CalledProcessError) as refused:
        _config(deploy)
    assert b"openssl rand -hex 32" in refused.value.stderr


def compose(folder: Path) -> Any:
    """The file as docker-compose reads it. Raises CalledProcessError if it is invalid."""
    deploy = folder / "deploy"
    shutil.copytree(DEPLOY, deploy, dirs_exist_ok=True)
    example = (DEPLOY / "gregor.env.example").read_text()
    (deploy / "gregor.env").write_text(re.sub("(?m)^([A-Z_]+)=$", f"\\1={SECRET}", example))
    return _config(deploy)


def _config(deploy: Path) -> Any:
    command = ("docker-compose", "--file", "compose.yaml", "--env-file", "gregor.env", "config")
    environment = {"PATH": os.environ["PATH"]}
    result = subprocess.run(command, cwd=deploy, env=environment, check=True, capture_output=True)
    return yaml.safe_load(result.stdout)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
