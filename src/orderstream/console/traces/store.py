"""Keeps recent traces in memory, for the waterfall of an order. It is bounded in bytes, in traces and in spans.

If the store is full, the oldest trace leaves. A span that does not fit is dropped, and the store counts it. A trace is
kept as encoded rows. The rows of older traces are compressed, because the spans of one order resemble each other.
"""

import zlib
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

import msgspec
from msgspec import Raw, Struct

Value = str | int | float | bool

STORE_MAX_BYTES = 24 << 20
"""The rows of all traces, with an estimate of the memory that Python needs for each trace and row."""
TRACES_MAX = 20_000
SPANS_PER_TRACE_MAX = 500
TRACE_MAX_BYTES = 2 << 20
"""The uncompressed rows of one trace."""
LOOSE_MAX_BYTES = 2 << 20
"""The rows that are not compressed. Beyond it, the store compresses the trace that got its last span longest ago."""
ORDERS_PER_TRACE_MAX = 8
LINKED_PER_TRACE_MAX = 128
"""Orders and linked traces by which one trace can be found. Its spans keep all of them."""

TRACES_PER_KEY_MAX = 100
"""Traces of one order, and traces that link to one trace. The first one and the newest ones can be found."""

TRACE_OVERHEAD_BYTES = 900
ROW_OVERHEAD_BYTES = 50
INDEX_ENTRY_BYTES = 350
"""The memory of one entry in the index of orders or of links."""
PLACED = "POST /orders"
"""The name of the span of the request that places an order."""


class Link(Struct, frozen=True, array_like=True):
    """A span of another trace that caused this one. Both ids are hexadecimal."""

    trace_id: str
    span_id: str


class StoredSpan(Struct, frozen=True, kw_only=True, array_like=True, omit_defaults=True):
    """A span. Ids are hexadecimal, and times are Unix nanoseconds. A root has the parent id ''.

    `error` is the message of a failed span, which may be empty. It is None if the span did not fail. `cut` is the
    number of attributes, links and values that were dropped or shortened because the span was too large.
    """

    trace_id: str
    span_id: str
    parent_id: str = ""
    service: str
    name: str
    kind: str = "INTERNAL"
    started_ns: int
    ended_ns: int
    attributes: dict[str, Value] = {}
    error: str | None = None
    links: tuple[Link, ...] = ()
    cut: int = 0

    @property
    def order_id(self) -> str | None:
        """The id of the span's order."""
        found = self.attributes.get("order.id")
        return found if isinstance(found, str) else None


class Figures(Struct, frozen=True, rename="camel"):
    """What the store holds, and what it has dropped since the process started."""

    traces: int
    spans: int
    bytes: int
    bytes_max: int
    traces_evicted: int
    spans_dropped: int
    oldest_span_at_ns: int | None
    """When the oldest trace in the store began."""


_encode = msgspec.msgpack.Encoder().encode
_decode_row = msgspec.msgpack.Decoder(StoredSpan).decode
_decode_rows = msgspec.msgpack.Decoder(list[StoredSpan]).decode
_decode_raw_rows = msgspec.msgpack.Decoder(list[Raw]).decode


class _Trace:
    """The rows of one trace. `loose` are rows that are not compressed yet."""

    __slots__ = ("began_ns", "dropped", "linked", "loose", "loose_bytes", "orders", "packed", "raw_bytes", "spans")

    def __init__(self, began_ns: int) -> None:
        self.began_ns = began_ns
        self.loose: list[bytes] = []
        self.loose_bytes = 0
        self.packed = b""
        self.raw_bytes = 0
        self.spans = 0
        self.dropped = 0
        self.orders: tuple[str, ...] = ()
        self.linked: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        index = INDEX_ENTRY_BYTES * (len(self.orders) + len(self.linked))
        return TRACE_OVERHEAD_BYTES + index + len(self.packed) + self.loose_bytes

    def pack(self) -> None:
        """Compress all rows together."""
        rows = [Raw(row) for row in self.loose]
        if self.packed:
            rows = [*_decode_raw_rows(zlib.decompress(self.packed)), *rows]
        self.packed = zlib.compress(_encode(rows), 1)
        self.loose = []
        self.loose_bytes = 0

    def decode(self) -> list[StoredSpan]:
        """Return the spans, each once: an exporter may send a span again."""
        spans = _decode_rows(zlib.decompress(self.packed)) if self.packed else []
        spans += [_decode_row(row) for row in self.loose]
        return list({span.span_id: span for span in spans}.values())


class TraceStore:
    """The traces of the last minutes. All methods are thread-safe. A trace id is 32 hexadecimal digits."""

    def __init__(self, max_bytes: int = STORE_MAX_BYTES, traces_max: int = TRACES_MAX) -> None:
        self._max_bytes = max_bytes
        self._traces_max = traces_max
        self._lock = Lock()
        self._traces: OrderedDict[str, _Trace] = OrderedDict()
        """Ordered by the arrival of the first span. The first trace is the oldest."""
        self._loose: OrderedDict[str, None] = OrderedDict()
        """Traces with loose rows, ordered by the arrival of their last span."""
        self._loose_bytes = 0
        self._bytes = 0
        self._spans = 0
        self._placed: dict[str, str] = {}
        self._of_order: dict[str, tuple[str, ...]] = {}
        self._linking: dict[str, tuple[str, ...]] = {}
        self._evicted = 0
        self._dropped = 0

    def add(self, spans: Sequence[StoredSpan]) -> None:
        """Keep spans. Beyond the limits, drop spans of a trace that is too large, and evict the oldest traces."""
        with self._lock:
            for span in spans:
                self._add(span)
            while self._loose_bytes > LOOSE_MAX_BYTES:
                self._pack_one()
            while self._traces and (self._bytes > self._max_bytes or len(self._traces) > self._traces_max):
                self._evict_oldest()

    def spans_of(self, trace_id: str) -> list[StoredSpan]:
        """Return the spans of a trace, the earliest first. Return none if the trace is not in the store."""
        with self._lock:
            trace = self._traces.get(trace_id)
            spans = [] if trace is None else trace.decode()
        return sorted(spans, key=lambda span: (span.started_ns, span.span_id))

    def dropped_of(self, trace_id: str) -> int:
        """Return how many spans of a trace were dropped because the trace is too large."""
        with self._lock:
            trace = self._traces.get(trace_id)
            return 0 if trace is None else trace.dropped

    def trace_of_order(self, order_id: str) -> str | None:
        """Return the trace of the request that placed an order, or None if it is not in the store."""
        with self._lock:
            return self._placed.get(order_id)

    def traces_of_order(self, order_id: str) -> tuple[str, ...]:
        """Return the traces that have a span of an order.

        First its own, then those that link to it, such as cancels, then requests to read it. Within each, the oldest
        are first.
        """
        with self._lock:
            own = self._placed.get(order_id)
            linking = self._linking.get(own or "", ())
            traces = self._of_order.get(order_id, ())
            return tuple(sorted(traces, key=lambda trace: (trace != own, trace not in linking)))

    def linking_to(self, trace_id: str) -> tuple[str, ...]:
        """Return the traces that have a link to a span of this trace, the oldest first: cancels, and batches."""
        with self._lock:
            return self._linking.get(trace_id, ())

    def figures(self) -> Figures:
        """Return what the store holds, and what it has dropped."""
        with self._lock:
            oldest = next(iter(self._traces.values()), None)
            return Figures(
                len(self._traces),
                self._spans,
                self._bytes,
                self._max_bytes,
                self._evicted,
                self._dropped,
                None if oldest is None else oldest.began_ns,
            )

    # The caller of each method below holds the lock.

    def _add(self, span: StoredSpan) -> None:
        row = _encode(span)
        trace = self._traces.get(span.trace_id)
        if trace is None:
            trace = self._traces[span.trace_id] = _Trace(span.started_ns)
            self._bytes += trace.bytes
        if trace.spans >= SPANS_PER_TRACE_MAX or trace.raw_bytes + len(row) > TRACE_MAX_BYTES:
            trace.dropped += 1
            self._dropped += 1
            return
        self._bytes -= trace.bytes
        trace.loose.append(row)
        trace.loose_bytes += len(row) + ROW_OVERHEAD_BYTES
        trace.raw_bytes += len(row)
        trace.spans += 1
        self._index(span, trace)
        self._bytes += trace.bytes
        self._spans += 1
        self._loose_bytes += len(row) + ROW_OVERHEAD_BYTES
        self._loose[span.trace_id] = None
        self._loose.move_to_end(span.trace_id)

    def _index(self, span: StoredSpan, trace: _Trace) -> None:
        """Make the trace findable by the order and by the linked traces of a span."""
        order_id = span.order_id
        if order_id and order_id not in trace.orders and len(trace.orders) < ORDERS_PER_TRACE_MAX:
            trace.orders += (order_id,)
            _append(self._of_order, order_id, span.trace_id)
        if order_id in trace.orders and span.name == PLACED:
            self._placed.setdefault(order_id, span.trace_id)
        for link in span.links:
            known = link.trace_id == span.trace_id or link.trace_id in trace.linked
            if not known and len(trace.linked) < LINKED_PER_TRACE_MAX:
                trace.linked += (link.trace_id,)
                _append(self._linking, link.trace_id, span.trace_id)

    def _pack_one(self) -> None:
        trace_id, _ = self._loose.popitem(last=False)
        trace = self._traces[trace_id]
        self._bytes -= trace.bytes
        self._loose_bytes -= trace.loose_bytes
        trace.pack()
        self._bytes += trace.bytes

    def _evict_oldest(self) -> None:
        trace_id, trace = self._traces.popitem(last=False)
        self._bytes -= trace.bytes
        self._spans -= trace.spans
        self._evicted += 1
        if trace_id in self._loose:
            del self._loose[trace_id]
            self._loose_bytes -= trace.loose_bytes
        for order_id in trace.orders:
            _remove(self._of_order, order_id, trace_id)
            if self._placed.get(order_id) == trace_id:
                del self._placed[order_id]
        for linked in trace.linked:
            _remove(self._linking, linked, trace_id)


def _append(index: dict[str, tuple[str, ...]], key: str, trace_id: str) -> None:
    traces = index.get(key, ())
    if len(traces) >= TRACES_PER_KEY_MAX:
        traces = (traces[0], *traces[2:])
    index[key] = (*traces, trace_id)


def _remove(index: dict[str, tuple[str, ...]], key: str, trace_id: str) -> None:
    traces = tuple(other for other in index.get(key, ()) if other != trace_id)
    if traces:
        index[key] = traces
    else:
        index.pop(key, None)
