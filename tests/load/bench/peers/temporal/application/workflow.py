"""The life of one order, as a durable workflow."""

from datetime import timedelta

from asyncpg_store import Store
from order import Authorization, Order, authorize
from temporalio import activity, workflow

TASK_QUEUE = "orders"
_ATTEMPT = timedelta(seconds=10)


class Steps:
    """The steps of an order, as activities. A repetition of a step changes nothing."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @activity.defn
    async def record(self, order: Order) -> None:
        """Record the order and its items."""
        await self._store.record(order)

    @activity.defn
    async def authorize(self, order: Order) -> Authorization:
        """Ask the provider."""
        return authorize(order)

    @activity.defn
    async def settle(self, order: Order, payment: Authorization) -> None:
        """Reserve the stock and confirm the order, or fail it."""
        await self._store.settle(order, payment)


@workflow.defn(name="order", sandboxed=False)
class OrderWorkflow:
    """Records the order, authorizes its payment and settles it. Temporal retries each step until it succeeds.

    The steps are local activities: the worker runs all of them within one workflow task.
    """

    @workflow.run
    async def run(self, order: Order) -> None:
        """Do the steps in their order."""
        await workflow.execute_local_activity_method(Steps.record, order, start_to_close_timeout=_ATTEMPT)
        payment = await workflow.execute_local_activity_method(Steps.authorize, order, start_to_close_timeout=_ATTEMPT)
        await workflow.execute_local_activity_method(
            Steps.settle, args=[order, payment], start_to_close_timeout=_ATTEMPT
        )
