"""The page at `/`: what this server is, and what it answers to."""

from starlette.requests import Request
from starlette.responses import Response

from gregor.server.service import Service

WELCOME = """This is Gregor.

  POST /v1/messages              inject messages
  GET  /v1/users/UID/state       the visible items of a user
  GET  /v1/users/UID/count       counts of items, for badges
  GET  /v1/users/UID/messages    the messages since a time, or after a cursor
  GET  /v1/users/UID/events      the same, live (server-sent events)
  DELETE /v1/users/UID           erase a user
  WS   /v1/connect               the connection of a device
  POST /v1/prune                 forget what is past for long

/openapi.json describes the HTTP API, at the address of --admin-listen.
"""


async def get_welcome(service: Service, request: Request) -> Response:
    return Response(WELCOME, media_type="text/plain")
