"""Orders on DBOS: the HTTP server starts a workflow for each order, and the same process runs it.

DBOS keeps the workflow, and the result of each step, in PostgreSQL. After a crash, the process that has the same
EXECUTOR_ID runs the workflows that it had not ended. Several processes listen on one port. Workflows and steps are
synchronous, because DBOS runs each of its statements in a thread: an asynchronous workflow changes threads each time.
"""

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from anyio import to_thread
from dbos import DBOS, DBOSConfig, SetWorkflowID
from fastapi import FastAPI, HTTPException
from order import Authorization, Order, Placed, authorize, received
from store import Store

REQUESTS, THREADS = 8, 16
"""Requests and workflows that run at a time in one process. The others wait for a thread."""
CONNECTIONS, DBOS_CONNECTIONS = 8, 20
"""Connections of one process to PostgreSQL, for the steps and for DBOS."""
_BACKLOG = 2048


@DBOS.step()
def record_and_authorize(order: Order) -> Authorization:
    """Record the order, and authorize its payment."""
    store: Store = app.state.store
    store.record(order)
    return authorize(order)


@DBOS.step()
def settle(order: Order, payment: Authorization) -> None:
    """Reserve the stock and confirm the order."""
    store: Store = app.state.store
    store.settle(order, payment)


@DBOS.workflow()
def process(order: Order) -> None:
    """Take an order to its end."""
    payment = record_and_authorize(order)
    settle(order, payment)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Connect to PostgreSQL and start DBOS, which first runs the workflows that an earlier run had not ended."""
    url = os.environ["POSTGRES_URL"]
    app.state.store = Store(url, CONNECTIONS)
    to_thread.current_default_thread_limiter().total_tokens = REQUESTS
    config: DBOSConfig = {
        "name": "orders",
        "application_version": "1",
        "executor_id": os.environ["EXECUTOR_ID"],
        "system_database_url": url,
        "sys_db_pool_size": DBOS_CONNECTIONS,
        "max_executor_threads": THREADS,
        # The default asks the server before each use of a connection whether the connection still works.
        "db_engine_kwargs": {"pool_pre_ping": False},
        "log_level": "WARNING",
    }
    DBOS(config=config)
    DBOS.launch()
    yield
    DBOS.destroy()
    app.state.store.close()


app = FastAPI(lifespan=lifespan)


@app.post("/orders", status_code=201)
def place_order(placed: Placed) -> dict[str, str]:
    """Answer when DBOS has stored the workflow with the order."""
    order = received(placed)
    with SetWorkflowID(order.id):
        DBOS.start_workflow(process, order)
    return {"orderId": order.id}


@app.get("/readyz/{executor_id}")
async def ready(executor_id: str) -> None:
    """Answer 200 if this process has the id, otherwise 404: another process has the connection."""
    if executor_id != os.environ["EXECUTOR_ID"]:
        raise HTTPException(404)


def main() -> None:
    """Serve on PORT, which other processes share."""
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind(("127.0.0.1", int(os.environ["PORT"])))
        listening.listen(_BACKLOG)
        # Not `uvicorn.run(fd=...)`, which leaves out TCP_NODELAY: each answer then waits 40 ms for the client's ACK.
        uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listening])


if __name__ == "__main__":
    main()
