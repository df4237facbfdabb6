"""Orders on Restate: Restate calls `orders.place`, over HTTP/2, for each order that the API in api.py hands to it."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import restate
from asyncpg_store import Store
from fastapi import FastAPI
from order import Authorization, Order, authorize

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
    """Open the connections to PostgreSQL."""
    app.state.store = await Store.connect(os.environ["POSTGRES_URL"], CONNECTIONS)
    yield
    await app.state.store.close()


app = FastAPI(lifespan=lifespan)
app.mount("/restate", restate.app([orders]))
