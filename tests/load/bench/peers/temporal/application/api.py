"""The HTTP API, with the worker in the same process: Temporal returns the first task of a workflow with its start."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from asyncpg_store import Store
from fastapi import FastAPI, Request, status
from google.protobuf.duration_pb2 import Duration
from order import Placed, received
from pydantic import BaseModel, Field
from temporalio.api.workflowservice.v1 import RegisterNamespaceRequest
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Worker
from workflow import TASK_QUEUE, OrderWorkflow, Steps

NAMESPACE = "default"
CONNECTIONS = 16
_RETENTION = timedelta(days=1)


class Accepted(BaseModel):
    """The answer to POST /orders."""

    order_id: str = Field(serialization_alias="orderId")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Run a worker beside the API."""
    client = await Client.connect(
        os.environ["TEMPORAL_ADDRESS"], namespace=NAMESPACE, data_converter=pydantic_data_converter
    )
    await _make_namespace(client)
    store = await Store.connect(os.environ["POSTGRES_URL"], CONNECTIONS)
    steps = Steps(store)
    worker = Worker(
        client,
        task_queue=TASK_QUEUE,
        workflows=[OrderWorkflow],
        activities=[steps.record, steps.authorize, steps.settle],
        no_remote_activities=True,
        max_cached_workflows=2_000,
        max_concurrent_workflow_tasks=200,
        max_concurrent_local_activities=200,
        max_concurrent_workflow_task_polls=2,
    )
    async with worker:
        app.state.client = client
        yield
    await store.close()


async def _make_namespace(client: Client) -> None:
    retention = Duration()
    retention.FromTimedelta(_RETENTION)
    request = RegisterNamespaceRequest(namespace=NAMESPACE, workflow_execution_retention_period=retention)
    try:
        await client.workflow_service.register_namespace(request)
    except RPCError as error:
        if error.status != RPCStatusCode.ALREADY_EXISTS:
            raise


app = FastAPI(lifespan=lifespan)


@app.post("/orders", status_code=status.HTTP_201_CREATED)
async def place_order(placed: Placed, request: Request) -> Accepted:
    """Accept an order. It is durable when Temporal has started its workflow."""
    order = received(placed)
    client: Client = request.app.state.client
    await client.start_workflow(OrderWorkflow.run, order, id=order.id, task_queue=TASK_QUEUE, request_eager_start=True)
    return Accepted(order_id=order.id)
