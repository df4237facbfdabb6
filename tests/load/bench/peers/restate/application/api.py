"""The HTTP API of the orders: it hands each order to Restate."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from fastapi import FastAPI, HTTPException
from order import Placed, received


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the connections to Restate."""
    async with aiohttp.ClientSession(os.environ["INGRESS_URL"], connector=aiohttp.TCPConnector(limit=0)) as session:
        app.state.restate = session
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/orders", status_code=201)
async def place_order(placed: Placed) -> dict[str, str]:
    """Answer when Restate has stored the order."""
    order = received(placed)
    session: aiohttp.ClientSession = app.state.restate
    head = {"content-type": "application/json"}
    async with session.post("/orders/place/send", data=order.model_dump_json().encode(), headers=head) as answer:
        await answer.read()
    if answer.status != 202:
        raise HTTPException(503)
    return {"orderId": order.id}
