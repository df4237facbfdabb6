"""The exceptions and error codes of Kafka: which of them are permanent, and for which records.

KafkaRefusedError: Kafka and this client cannot connect, and no retry helps.
PublishError: Kafka did not acknowledge every record of a publish.
"""

from collections.abc import Collection, Mapping

from confluent_kafka import KafkaError

BATCH_REFUSED = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.INVALID_RECORD,
        KafkaError.INVALID_MSG,
        KafkaError.INVALID_MSG_SIZE,
        KafkaError.INVALID_TIMESTAMP,
        KafkaError.POLICY_VIOLATION,
        KafkaError.UNSUPPORTED_FOR_MESSAGE_FORMAT,
        KafkaError._INVALID_DIFFERENT_RECORD,
        KafkaError._INVALID_ARG,
    }
)
"""Kafka permanently refuses a batch of one partition. One record of the batch may be the cause."""
TOPIC_REFUSED = frozenset(
    {
        KafkaError.TOPIC_EXCEPTION,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.INVALID_REQUIRED_ACKS,
        KafkaError.UNSUPPORTED_COMPRESSION_TYPE,
        KafkaError.INVALID_CONFIG,
    }
)
"""Kafka permanently refuses every record of a topic."""
REFUSED = BATCH_REFUSED | TOPIC_REFUSED
UNKNOWN_TOPIC = (
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
)
TOPIC_MAY_BE_GONE = (*UNKNOWN_TOPIC, KafkaError._MSG_TIMED_OUT)
"""A producer that has sent to a topic before learns of its deletion only after the delivery timeout."""
FENCED = (
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.STALE_MEMBER_EPOCH,
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError._ASSIGNMENT_LOST,
    KafkaError._STATE,
)
"""Kafka refused an offset commit because the partitions now belong to another consumer."""


class KafkaRefusedError(Exception):
    """Kafka refuses this client, or this client refuses Kafka, as with a wrong password or an untrusted certificate.

    No retry helps.
    """


class PublishError(Exception):
    """Kafka did not acknowledge every record. `code` is librdkafka's code of the first failure.

    `refused` has the records that Kafka permanently refuses: their index and the reason. `unacknowledged` has the
    indexes of the records that a retry may deliver. If it is None, any record may be among them.
    """

    def __init__(
        self,
        error: KafkaError,
        failed: int,
        refused: Mapping[int, str] | None = None,
        unacknowledged: Collection[int] | None = None,
    ) -> None:
        super().__init__(f"{failed} records were not acknowledged: {error.str()}")
        self.code = error.code()
        self.fatal = is_fatal(error)
        self.refused = refused or {}
        self.unacknowledged = unacknowledged

    @property
    def all_refused(self) -> bool:
        """Whether Kafka permanently refuses every failed record. A retry of the same records then cannot succeed."""
        return bool(self.refused) and self.unacknowledged is not None and not self.unacknowledged


def is_fatal(error: KafkaError) -> bool:
    """Say whether the client cannot be used any more after this error."""
    return error.fatal() or error.code() == KafkaError._FATAL
