"""Redis over TLS with a password, by options in REDIS_URL. If Redis refuses the connection, there is no cache (P11)."""

import asyncio
import logging

import psutil
import pytest

from orderstream.cache import AsyncCache, CacheInvalidator, Entry, Fill, Lease, Lookup
from tests.integration.security.conftest import Certificates, redis_url_of

ID = "01890a5d-ac96-774b-bcce-b302099a8057"
BUDGET_SECONDS = 10.0
"""Long, because these tests do not measure how fast a handshake is on a busy machine."""


def _connections() -> set[tuple[int, int]]:
    """Return the established connections of this process, as pairs of ports."""
    return {
        (connection.laddr[1], connection.raddr[1])
        for connection in psutil.Process().net_connections("tcp")
        if connection.status == "ESTABLISHED"
    }


async def _look_up(url: str) -> Lookup:
    before = _connections()
    reader = AsyncCache(url, BUDGET_SECONDS)
    try:
        (found,) = await reader.look_up([ID])
        if isinstance(found, Lease):
            await reader.fill([Fill(ID, found.token, b"{}")])
        return found
    finally:
        await reader.close()
        # redis-py does not wait until a refused connection has ended.
        async with asyncio.timeout(BUDGET_SECONDS):
            while _connections() - before:  # noqa: ASYNC110 - the kernel does not notify
                await asyncio.sleep(0.01)


def test_an_entry_is_found_over_tls_until_it_is_deleted(secured_redis: str, certificates: Certificates) -> None:
    url = redis_url_of(secured_redis, certificates.trusted)
    invalidator = CacheInvalidator(url, BUDGET_SECONDS)
    assert isinstance(asyncio.run(_look_up(url)), Lease)
    assert asyncio.run(_look_up(url)) == Entry(b"{}")
    assert invalidator.delete([ID])
    assert isinstance(asyncio.run(_look_up(url)), Lease)
    invalidator.close()


def _warnings_without_a_cache(url: str, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Read and delete while Redis refuses the connection, and return the warnings."""
    invalidator = CacheInvalidator(url, BUDGET_SECONDS)
    with caplog.at_level(logging.WARNING):
        assert asyncio.run(_look_up(url)) == "unreachable"
        assert not invalidator.delete([ID])
    invalidator.close()
    return [record.getMessage() for record in caplog.records if record.name == "orderstream.cache"]


def test_with_a_wrong_password_there_is_no_cache_and_a_warning_says_why(
    secured_redis: str, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    warnings = _warnings_without_a_cache(redis_url_of(secured_redis, certificates.trusted, "wrong"), caplog)
    assert ["invalid username-password pair" in warning for warning in warnings] == [True, True]


def test_with_an_untrusted_certificate_there_is_no_cache_and_a_warning_says_why(
    secured_redis: str, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    warnings = _warnings_without_a_cache(redis_url_of(secured_redis, certificates.untrusted), caplog)
    assert ["certificate verify failed" in warning for warning in warnings] == [True, True]
