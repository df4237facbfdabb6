"""The areas of the console: their operations, their pages, and the work that they do in the background."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

from starlette.routing import Route

from orderstream.console.actions import api as actions_api
from orderstream.console.actions import pages as actions_pages
from orderstream.console.context import Console
from orderstream.console.dead_letters import api as dead_letters_api
from orderstream.console.dead_letters import pages as dead_letters_pages
from orderstream.console.flow import api as flow_api
from orderstream.console.flow import pages as flow_pages
from orderstream.console.flow.running import running as running_flow
from orderstream.console.orders import api as orders_api
from orderstream.console.orders import pages as orders_pages
from orderstream.console.orders import story_api, story_pages
from orderstream.console.play import api as play_api
from orderstream.console.play import desk
from orderstream.console.play import pages as play_pages
from orderstream.console.processes import api as processes_api
from orderstream.console.processes import pages as processes_pages
from orderstream.console.promises import api as promises_api
from orderstream.console.promises import audits
from orderstream.console.promises import pages as promises_pages
from orderstream.console.stock import api as stock_api
from orderstream.console.stock import pages as stock_pages
from orderstream.console.traces import api as traces_api
from orderstream.console.traces import pages as traces_pages
from orderstream.console.web.api import Operation

OPERATIONS: Sequence[Callable[[Console], list[Operation]]] = (
    dead_letters_api.operations,
    flow_api.operations,
    orders_api.operations,
    stock_api.operations,
    promises_api.operations,
    processes_api.operations,
    play_api.operations,
    actions_api.operations,
    traces_api.operations,
    story_api.operations,
)
"""The functions `operations` of the areas' modules `api`."""

PAGES: Sequence[Callable[[Console], list[Route]]] = (
    dead_letters_pages.routes,
    flow_pages.routes,
    orders_pages.routes,
    story_pages.routes,
    traces_pages.routes,
    stock_pages.routes,
    promises_pages.routes,
    processes_pages.routes,
    play_pages.routes,
    actions_pages.routes,
)
"""The functions `routes` of the areas' modules `pages`."""

RUNNING: Sequence[Callable[[Console], AbstractAsyncContextManager[None]]] = (
    dead_letters_pages.running,
    running_flow,
    story_api.running,
    audits.running,
    desk.running,
)
"""The background work of areas. It ends when its context manager ends."""
