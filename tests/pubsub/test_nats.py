"""How a node authenticates to NATS, and what a NATS user must be allowed to do."""

import subprocess
from pathlib import Path

import pytest

from gregor.pubsub.remote import pubsub_at
from tests.fleet.nats_credentials import user, write_server_with_accounts
from tests.fleet.servers import NATS
from tests.pubsub.test_faults import assert_delivers, setup_error, until


def with_credentials(server: NATS, credentials: str) -> str:
    return server.url.replace("://", f"://{credentials}@")


@pytest.mark.parametrize(
    ("options", "credentials"),
    [
        (["--user", "m@il", "--pass", "p@ss:w/rd?%"], "m%40il:p%40ss%3Aw%2Frd%3F%25"),
        (["--auth", "to/ken@1"], "to%2Fken%401"),
    ],
    ids=["password", "token"],
)
async def test_credentials_in_the_url_are_percent_decoded(
    options: list[str], credentials: str
) -> None:
    async with NATS(*options) as server:
        assert "Authorization Violation" in await setup_error(server.url)
        async with pubsub_at(with_credentials(server, credentials)) as pubsub:
            await assert_delivers(pubsub)


async def test_nkey_file(tmp_path: Path) -> None:
    member, stranger = user(), user()
    seed = tmp_path / "user.nk"
    seed.write_text(f"{stranger.seed}\n")
    configuration = tmp_path / "server.conf"
    configuration.write_text(f"authorization {{ users [ {{ nkey: {member.public} }} ] }}\n")
    async with NATS("--config", str(configuration)) as server:
        url = f"{server.url}?nkey={seed}"
        assert "Authorization Violation" in await setup_error(url)
        seed.write_text(f"{member.seed}\n")
        async with pubsub_at(url) as pubsub:
            await assert_delivers(pubsub)


async def test_credentials_file_is_read_again_for_each_connection(tmp_path: Path) -> None:
    configuration, credentials = write_server_with_accounts(tmp_path)
    async with NATS("--config", str(configuration)) as server:
        assert "Authorization Violation" in await setup_error(server.url)
        async with pubsub_at(f"{server.url}?creds={credentials}", jitter=lambda: 0.1) as pubsub:
            await assert_delivers(pubsub)
            valid = credentials.read_text()
            credentials.write_text("replaced")
            await server.kill()
            await server.start()
            await until(lambda: pubsub.reconnects["other"] > 0)
            credentials.write_text(valid)
            await until(lambda: pubsub.up)


@pytest.mark.parametrize("option", ["creds", "nkey"])
@pytest.mark.parametrize("content", ["", "-----BEGIN NATS USER JWT-----\n", "seed"])
async def test_setup_error_names_a_file_without_credentials(
    tmp_path: Path, option: str, content: str
) -> None:
    file = tmp_path / "file"
    file.write_text(content)
    async with NATS("--auth", "token") as server:
        message = await setup_error(f"{server.url}?{option}={file}")
        assert f"{file} has no credentials of a NATS user" in message


async def test_seed_without_token_is_not_a_credentials_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text(user().seed)
    async with NATS("--auth", "token") as server:
        assert "has no credentials" in await setup_error(f"{server.url}?creds={file}")


def make_certificate(directory: Path, name: str) -> tuple[Path, Path]:
    """A certificate for loopback, which is its own authority, and its key."""
    cert, key = directory / f"{name}-cert.pem", directory / f"{name}-key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-keyout", str(key), "-out", str(cert), "-subj", f"/CN={name}"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


async def test_tls_checks_the_server_and_may_present_a_certificate(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path, "server")
    own_cert, own_key = make_certificate(tmp_path, "node")
    options = ("--tlscert", str(cert), "--tlskey", str(key))
    async with NATS("--tls", "--tlsverify", *options, "--tlscacert", str(own_cert)) as server:
        url = server.url.replace("nats:", "tls:")
        assert "certificate verify failed" in await setup_error(url)
        own = f"tls_cert={own_cert}&tls_key={own_key}"
        async with pubsub_at(f"{url}?tls_ca={cert}&{own}") as pubsub:
            await assert_delivers(pubsub)
        assert "cannot be used" in await setup_error(f"{url}?tls_ca={cert}")


@pytest.mark.parametrize("allowed", ["gregor.>", "other.>"])
async def test_permission_for_one_prefix_is_enough(tmp_path: Path, allowed: str) -> None:
    configuration = tmp_path / "server.conf"
    configuration.write_text(
        "authorization { users [ { user: me, password: x, permissions: "
        f'{{ publish: "{allowed}", subscribe: "{allowed}" }} }} ] }}\n'
    )
    async with NATS("--config", str(configuration)) as server:
        url = with_credentials(server, "me:x")
        if allowed == "gregor.>":
            async with pubsub_at(url) as pubsub:
                await assert_delivers(pubsub, "gregor:user:u")
        else:
            assert "ermissions" in await setup_error(url)
