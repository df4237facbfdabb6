"""Counts the requests that each client sends to Kafka: a broker that logs them, and a reader of its log."""

import re
from collections import Counter
from pathlib import Path

from orderstream.local.processes.child import Command
from orderstream.local.servers.kafka import Kafka

_LOG_REQUESTS = "-Dorg.slf4j.simpleLogger.log.kafka.request.logger=debug"
_REQUEST = re.compile(
    rb'Completed request:\{"isForwarded":false,"requestHeader":'
    rb'\{[^}]*"clientId":"([^"]*)","requestApiKeyName":"([A-Z_]+)"'
)


class LoggingKafka(Kafka):
    """A broker that writes a line for each request, after it has answered it."""

    def command(self) -> Command:
        """Return the command of a broker, with the logger of the requests."""
        return self._broker([_LOG_REQUESTS])


def requests(log: Path) -> Counter[tuple[str, str]]:
    """Return how many requests of each kind each client has sent until now, by client and kind, such as FETCH.

    A request that waits in the broker, such as a fetch without records, counts when it is answered.
    """
    with log.open("rb") as lines:
        found = (_REQUEST.search(line) for line in lines)
        return Counter((match[1].decode(), match[2].decode()) for match in found if match)
