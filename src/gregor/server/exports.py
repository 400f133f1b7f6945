"""Exports, imports and backups over HTTP: streams of any size, in bounded memory."""

import os
from collections.abc import AsyncIterator

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp

from gregor.core.message import UID
from gregor.node.exporting import export
from gregor.protocol.requests import JSON_LINES, SQLITE_FILE
from gregor.server import http
from gregor.server.auth import Identity
from gregor.server.service import Service
from gregor.server.streams import Streamed

CHUNK = 256 * 1024


async def get_export(service: Service, request: Request, identity: Identity) -> ASGIApp:
    """All users of the store."""
    identity.require_service("export all users")
    http.check_parameters(request, frozenset(), frozenset())
    return await _export(service, None)


async def get_user_export(service: Service, request: Request, identity: Identity) -> ASGIApp:
    """One user, also for a device of that user."""
    uid = http.user_of(request, identity, set())
    http.take(service, identity, syncs_per_second=1)
    return await _export(service, uid)


async def _export(service: Service, uid: UID | None) -> ASGIApp:
    chunks = export(service.node.state_machine, uid)
    first = await anext(chunks)  # before the status: what fails at once is answered with its error
    return Streamed(first, chunks, JSON_LINES, "an export was broken off")


async def post_import(service: Service, request: Request, identity: Identity) -> Response:
    """Import an export, which is read as it arrives. Answers when it is done."""
    identity.require_service("import")
    http.check_parameters(request, frozenset(), frozenset())
    answer = await service.import_export(request.stream())
    return Response(msgspec.json.encode(answer), media_type="application/json")


async def get_backup(service: Service, request: Request, identity: Identity) -> ASGIApp:
    """A copy of the SQLite file, as of one instant."""
    identity.require_service("back up the store")
    http.check_parameters(request, frozenset(), frozenset())
    file = await service.node.state_machine.backup()
    headers = {"Content-Length": str(os.stat(file.fileno()).st_size)}

    async def chunks() -> AsyncIterator[bytes]:
        with file:
            while chunk := await run_in_threadpool(file.read, CHUNK):
                yield chunk

    return StreamingResponse(chunks(), media_type=SQLITE_FILE, headers=headers)
