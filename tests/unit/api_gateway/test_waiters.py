"""The Prefer field: how long a client prefers to wait."""

import pytest

from orderstream.api_gateway.orders.waiters import preferred_wait


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0),
        (b"", 0),
        (b"wait=10", 10),
        (b"Wait=10", 10),
        (b'wait="10"', 10),
        (b" wait = 10 ; x=y", 10),
        (b"wait=30", 30),
        (b"wait=31", 30),
        (b"wait=" + b"9" * 100, 30),
        (b"wait=" + b"9" * 5_000, 0),
        (b"respond-async, wait=5", 5),
        (b"wait=5, wait=6", 5),
        (b"wait=x, wait=6", 0),
        (b"wait=0", 0),
        (b"wait=1.5", 0),
        (b"wait=+1", 0),
        (b"waits=5", 0),
        (b"wait", 0),
        (b"\xff\xfe", 0),
        (b'foo="a,wait=2"', 0),
        (b'foo="a,wait=2", wait=3', 3),
        (b'foo="a\\",wait=2", wait=3', 3),
        (b'foo;bar=",wait=2", wait=3', 3),
        (b"foo;wait=2", 0),
        (b'wait="2', 0),
        (b"wait=2 3", 0),
        (b"xwait=2", 0),
        (b'"wait=2"', 0),
    ],
)
def test_only_the_first_wait_preference_counts(header: bytes | None, seconds: int) -> None:
    assert preferred_wait(header) == seconds
