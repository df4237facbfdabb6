"""Orders on Restate: the HTTP server hands each order to Restate, and Restate calls `orders.place`.

One application has both, as the documentation of the SDK shows for FastAPI. Hypercorn speaks HTTP/1.1 with the clients
and HTTP/2 with Restate.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import restate
from fastapi import FastAPI, HTTPException
from order import Authorization, Order, Placed, authorize, received
from store import Store

CONNECTIONS = 8
"""Connections of one process to PostgreSQL."""

orders = restate.Service("orders")


@orders.handler()
async def place(ctx: restate.Context, order: Order) -> None:
    """Take an order to its end. Restate keeps the result of each step in a journal and then never repeats the step."""
    store: Store = app.state.store

    async def record_and_authorize() -> Authorization:
        await store.record(order)
        return authorize(order)

    async def settle() -> None:
        await store.settle(order, payment)

    payment = await ctx.run_typed("record and authorize", record_and_authorize)
    await ctx.run_typed("settle", settle)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the connections to PostgreSQL and to Restate."""
    app.state.store = await Store.connect(os.environ["POSTGRES_URL"], CONNECTIONS)
    async with aiohttp.ClientSession(os.environ["INGRESS_URL"], connector=aiohttp.TCPConnector(limit=0)) as session:
        app.state.restate = session
        yield
    await app.state.store.close()


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


app.mount("/restate", restate.app([orders]))
