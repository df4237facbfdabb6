"""What `make bench` needs of each contestant: OrderStream, and what people would use instead of it.

Every contestant does the same work behind the same HTTP interface. `POST /orders` takes the body of OrderStream and
answers 201 with `{"orderId": ...}` when the order is durable. Then the contestant authorizes the payment with a
provider that answers at once, reserves the stock and confirms the order. At the end PostgreSQL has the same rows in
`orders`, `order_items`, `payments`, `reservations` and `inventory`, with the columns of tables.sql.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol


class Running(Protocol):
    """A contestant that serves orders."""

    @property
    def base_url(self) -> str:
        """Where `POST /orders` is, without a slash at the end."""
        ...

    @property
    def postgres_url(self) -> str:
        """The database that holds the tables. The account may read all of them and write `inventory`."""
        ...

    def processes(self) -> Mapping[str, int]:
        """Return the pid of each process, PostgreSQL and other servers included. Their descendants belong to them."""
        ...


class Contestant(Protocol):
    """A system that can be started with empty data."""

    name: str
    about: str
    """One paragraph: what it does more and what it does less than OrderStream."""

    @property
    def connections(self) -> int:
        """Connections over which the saturated phase places orders: the number with which it settles most orders."""
        ...

    @property
    def has_java(self) -> bool:
        """Whether one of its servers runs on Java, which compiles for some time before it is as fast as it can be."""
        ...

    @property
    def in_flight(self) -> int | None:
        """Accepted orders that the saturated phase lets it have at a time before they settle.

        The smallest number with which it settles as many orders per second as with a larger one. A contestant accepts
        orders much faster than it settles them, and a longer queue only costs it more. None: it needs no such limit.
        """
        ...

    def install(self) -> None:
        """Install what is missing below `.orderstream/bench/peers`, from package registries."""
        ...

    def running(self, folder: Path) -> AbstractContextManager[Running]:
        """Start it with empty data below `folder`, and end all its processes when the block ends.

        The block begins when it answers `POST /orders`. PostgreSQL has the options of OrderStream's.
        """
        ...
