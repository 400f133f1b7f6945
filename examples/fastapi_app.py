"""A shop with Gregor mounted in its app: customers place orders over the shop's API, and every
device of the customer receives them through Gregor.

    pip install 'gregor-sync[server]' fastapi
    uvicorn examples.fastapi_app:app --no-access-log

    curl -X POST 'http://127.0.0.1:8000/orders?customer=alice&item=umbrella'
    curl http://127.0.0.1:8000/gregor/v1/users/alice/state

Devices connect to ws://127.0.0.1:8000/gregor/v1/connect. A shop with sessions of its own passes an
`authenticator=`, whose `async def identify(token)` may ask the shop's database.

The shop's page, with the customer's inbox and settings, is in `examples/react/`. It needs a token:

    (cd js && npm ci && npm run example)
    python examples/fastapi_app.py

Then open http://127.0.0.1:8000/shop?customer=alice, in two windows.
"""

import secrets
from pathlib import Path

import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse

from gregor import create
from gregor.clock import now
from gregor.config import Auth, Settings, load
from gregor.core.inbox import notification
from gregor.core.instant import SECOND
from gregor.server import Server
from gregor.server.auth import Identity, Role, make_token

PAGE = Path(__file__).parent / "react" / "dist" / "index.html"
TOKEN_SECONDS = 600


def make_app(settings: Settings) -> FastAPI:
    """Make the shop's app. It needs `lifespan` to open and close Gregor, because a host app does
    not run the lifespan of a mounted app."""
    gregor = Server.from_settings(settings)
    app = FastAPI(title="A shop", lifespan=gregor.lifespan)
    app.mount("/gregor", gregor.app)

    @app.post("/orders")
    async def place_order(customer: str, item: str) -> dict[str, str]:
        # Called in-process, without the network. The message is durable when this returns.
        message = create(customer, "order.placed", {"item": item})
        await gregor.inject(message)
        return {"order": message.msg_id}

    @app.post("/shipments")
    async def ship(customer: str, item: str) -> dict[str, str]:
        body = {"title": f"Your {item} is on its way", "text": "It arrives tomorrow."}
        messages = notification(customer, "shipments", body)
        for message in messages:
            await gregor.inject(message)
        return {"shipment": messages[0].msg_id}

    @app.post("/token")
    async def token(customer: str) -> dict[str, str]:
        """A token for a device of this customer. A real shop looks at its session cookie first."""
        if settings.jwt_secret is None:
            return {"token": customer}  # --auth open: a token is the uid
        identity = Identity(customer, Role.DEVICE, expires_at=now() + TOKEN_SECONDS * SECOND)
        return {"token": make_token(settings.jwt_secret.get_secret_value(), identity)}

    @app.get("/shop", include_in_schema=False)
    async def page() -> FileResponse:
        if not PAGE.exists():
            raise HTTPException(404, "build the page: (cd js && npm ci && npm run example)")
        return FileResponse(PAGE)

    return app


def with_tokens() -> Settings:
    """Settings under which a device needs a token of the shop. Pages that have one of an earlier
    run ask for another."""
    return load(auth=Auth.JWT, jwt_secret=secrets.token_hex(32))


if __name__ == "__main__":
    uvicorn.run(make_app(with_tokens()), access_log=False)
else:
    app = make_app(load())
