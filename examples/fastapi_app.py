"""A shop with Gregor mounted in its app: customers place orders over the shop's API, and every
device of the customer receives them through Gregor.

    pip install 'gregor-sync[server]' fastapi
    uvicorn examples.fastapi_app:app --no-access-log

    curl -X POST 'http://127.0.0.1:8000/orders?customer=alice&item=umbrella'
    curl http://127.0.0.1:8000/gregor/v1/users/alice/state

Devices connect to ws://127.0.0.1:8000/gregor/v1/connect. A shop with sessions of its own passes an
`authenticator=`, whose `async def identify(token)` may ask the shop's database.
"""

from fastapi import FastAPI

from gregor import create
from gregor.config import load
from gregor.server import Server


def make_app(gregor: Server) -> FastAPI:
    """Make the shop's app. It needs `lifespan` to open and close Gregor, because a host app does
    not run the lifespan of a mounted app."""
    app = FastAPI(title="A shop", lifespan=gregor.lifespan)
    app.mount("/gregor", gregor.app)

    @app.post("/orders")
    async def place_order(customer: str, item: str) -> dict[str, str]:
        # Called in-process, without the network. The message is durable when this returns.
        message = create(customer, "order.placed", {"item": item})
        await gregor.inject(message)
        return {"order": message.msg_id}

    return app


app = make_app(Server.from_settings(load()))
