"""Redis over TLS with a password, by the options of redis-py's URLs. Being refused is being without a cache (P11)."""

import asyncio
import logging

import psutil
import pytest

from orderstream.cache import AsyncCache, CacheInvalidator, Entry, Fill, Lease, Lookup
from tests.integration.security.conftest import Certificates, redis_url_of

ID = "01890a5d-ac96-774b-bcce-b302099a8057"
BUDGET_SECONDS = 10.0
"""Ample: what is tested is not how fast a handshake is on a busy machine."""


def _connections() -> set[tuple[int, int]]:
    """The connections of this process, as pairs of ports."""
    return {
        (one.laddr[1], one.raddr[1]) for one in psutil.Process().net_connections("tcp") if one.status == "ESTABLISHED"
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
        # redis-py does not wait for the end of a connection that was refused.
        async with asyncio.timeout(BUDGET_SECONDS):
            while _connections() - before:  # noqa: ASYNC110 - the kernel tells nobody
                await asyncio.sleep(0.01)


def test_what_is_filled_is_found_until_it_is_deleted(secured_redis: str, certificates: Certificates) -> None:
    url = redis_url_of(secured_redis, certificates.trusted)
    invalidator = CacheInvalidator(url, BUDGET_SECONDS)
    assert isinstance(asyncio.run(_look_up(url)), Lease)
    assert asyncio.run(_look_up(url)) == Entry(b"{}")
    assert invalidator.delete([ID])
    assert isinstance(asyncio.run(_look_up(url)), Lease)
    invalidator.close()


def _warnings_without_a_cache(url: str, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What is logged while reading and changing go on without Redis."""
    invalidator = CacheInvalidator(url, BUDGET_SECONDS)
    with caplog.at_level(logging.WARNING):
        assert asyncio.run(_look_up(url)) == "unreachable"
        assert not invalidator.delete([ID])
    invalidator.close()
    return [record.getMessage() for record in caplog.records if record.name == "orderstream.cache"]


def test_a_wrong_password_means_no_cache_and_says_so(
    secured_redis: str, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    said = _warnings_without_a_cache(redis_url_of(secured_redis, certificates.trusted, "wrong"), caplog)
    assert ["invalid username-password pair" in one for one in said] == [True, True]


def test_an_untrusted_certificate_means_no_cache_and_says_so(
    secured_redis: str, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    said = _warnings_without_a_cache(redis_url_of(secured_redis, certificates.untrusted), caplog)
    assert ["certificate verify failed" in one for one in said] == [True, True]
