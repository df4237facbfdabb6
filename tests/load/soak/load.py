"""The clients of a soak. At a steady rate, they place, read, cancel and repeat orders and send invalid requests.

They compare every answer with the promises of the API (P6, P8, P10) and record it in the ledger.
"""

import asyncio
import random
import time
import uuid

import msgspec

from tests.load.soak.client import Answer, Client, UnansweredError
from tests.load.soak.ledger import SETTLED, Ledger, Seen

SKU, SCARCE = "SOAK-1", "SOAK-SCARCE"
STOCKED = {SKU: 50_000_000, SCARCE: 500}
CLIENTS_MAX = 3_000
"""Clients at the same time. A further client is withheld and counted: the machine cannot send more."""
KEY_ATTEMPTS = 60
RETRY_SECONDS = 0.5
KINDS = {"good": 52, "stray": 3, "scarce": 6, "unknown": 5, "cancelled": 14, "keyed": 12, "hostile": 8}
RETURNING_SHARE = 0.3
"""The share of clients that also read an earlier order."""

_HOSTILE: list[tuple[bytes, dict[str, str], int]] = [
    (b"{", {}, 400),
    (b"[]", {}, 400),
    (b"\xff\xfe", {}, 400),
    (b'{"userId":"u","items":[],"amount":1,"currency":"USD"}', {}, 400),
    (b'{"userId":"u","items":[{"sku":"A","qty":-1,"price":1}],"amount":1e99,"currency":"XXX"}', {}, 400),
    (b'{"userId":"u\\u0000","items":[{"sku":"A","qty":1,"price":1}],"amount":1,"currency":"USD"}', {}, 400),
    (b"[" * 5_000, {}, 400),
    (b"x" * 1_100_000, {}, 413),
    (b"<order/>", {"content-type": "application/xml"}, 415),
    (b"{}", {"idempotency-key": "x" * 256}, 400),
]
_MAYBE = (503, 429)
"""Answers that every request may get during a fault."""
_NOTHING_STORED = b"stored nothing"
"""In the detail of a 503 if no order was stored. After any other 503, the order may exist."""


class Load:
    """Runs the clients."""

    def __init__(self, client: Client, ledger: Ledger, rate: int, chance: random.Random) -> None:
        self._client = client
        self._ledger = ledger
        self._rate = rate
        self._chance = chance
        self._clients: set[asyncio.Task[None]] = set()
        self._recent: list[Seen] = []
        self.offered = 0
        self.withheld = 0

    async def run(self, seconds: float) -> None:
        """Start clients at the rate for `seconds`, and then wait until the last one has finished."""
        began = time.monotonic()
        while (passed := time.monotonic() - began) < seconds:
            for _ in range(int(passed * self._rate) - self.offered - self.withheld):
                self._arrive()
            await asyncio.sleep(0.01)
        if self._clients:
            await asyncio.gather(*self._clients)

    def _arrive(self) -> None:
        if len(self._clients) >= CLIENTS_MAX:
            self.withheld += 1
            return
        self.offered += 1
        (kind,) = self._chance.choices(list(KINDS), list(KINDS.values()))
        task = asyncio.create_task(self._visit(kind))
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _visit(self, kind: str) -> None:
        try:
            if self._recent and self._chance.random() < RETURNING_SHARE:
                await self._read(self._chance.choice(self._recent))
            if kind == "hostile":
                await self._misuse()
            elif kind == "keyed":
                await self._repeat_with_key()
            else:
                await self._order(kind)
        except UnansweredError:
            self._ledger.answers["unanswered"] += 1

    async def _order(self, kind: str) -> None:
        body = _body({"scarce": SCARCE, "unknown": "SOAK-NEVER"}.get(kind, SKU))
        seen = await self._place(body, stray=b"}" if kind == "stray" else b"")
        if seen is None:
            return
        if kind == "cancelled":
            await self._cancel(seen)
        elif self._chance.random() < 0.1:
            await self._read(seen, wait=self._chance.randint(1, 10))
        else:
            await asyncio.sleep(self._chance.random())
            await self._read(seen)

    async def _place(self, body: bytes, stray: bytes) -> Seen | None:
        """Place an order. Stray bytes after it must not change the answer."""
        try:
            answer = await self._client.send("POST", "/orders", body, stray=stray)
        except UnansweredError:
            self._ledger.unanswered_posts += 1
            raise
        self._note("POST", answer, {201})
        if answer.status in _MAYBE and _NOTHING_STORED not in answer.body:
            self._ledger.unanswered_posts += 1
        return self._accepted(answer) if answer.status == 201 else None

    def _accepted(self, answer: Answer) -> Seen:
        seen = self._ledger.accepted(msgspec.json.decode(answer.body)["orderId"])
        if len(self._recent) < 20_000:
            self._recent.append(seen)
        else:
            self._recent[self._chance.randrange(20_000)] = seen
        return seen

    async def _cancel(self, seen: Seen) -> None:
        """Cancel the order after a random time, one to three times. A cancelled order must stay cancelled."""
        await asyncio.sleep(self._chance.choice((0.0, 0.0, 0.02, 0.1, 1.0, 5.0)) * self._chance.random())
        for _ in range(self._chance.randint(1, 3)):
            seen.cancel_tried = True
            began, floor = time.monotonic(), seen.newest
            answer = await self._client.send("POST", f"/orders/{seen.order_id}/cancel")
            self._note("cancel", answer, {202, 409})
            if answer.status == 202:
                self._state(seen, answer, floor, began)
            await self._read(seen)

    async def _read(self, seen: Seen, wait: int = 0) -> None:
        began, floor = time.monotonic(), seen.newest
        headers = {"prefer": f"wait={wait}"} if wait else {}
        answer = await self._client.send("GET", f"/orders/{seen.order_id}", headers=headers)
        self._note("GET", answer, {200, 202})
        if answer.status in (200, 202):
            status = self._state(seen, answer, floor, began)
            if (status in SETTLED) != (answer.status == 200):
                self._ledger.problems.append(f"{seen.order_id}: {status} was answered with {answer.status}")

    def _state(self, seen: Seen, answer: Answer, floor: int, began: float) -> str:
        order = msgspec.json.decode(answer.body)
        status: str = order["status"]
        self._ledger.state(seen, order["version"], status, floor, began)
        return status

    async def _repeat_with_key(self) -> None:
        """Repeat an order with one key: until it is answered, several times at once, later, and with another body."""
        key, body = f"soak-{uuid.UUID(int=self._chance.getrandbits(128))}", _body(SKU)
        first = [self._keyed(key, body) for _ in range(self._chance.choice((1, 1, 2, 4)))]
        replies = [reply for reply in await asyncio.gather(*first) if reply is not None]
        if not replies:
            return
        await asyncio.sleep(self._chance.random() * 10)
        for _ in range(self._chance.randint(0, 2)):
            again = await self._keyed(key, body)
            replies += [again] if again is not None else []
        if len({(reply.body, reply.headers.get("location")) for reply in replies}) > 1:
            self._ledger.problems.append(f"{key}: several replies: {[reply.body for reply in replies]}")
        if self._chance.random() < 0.3:
            other = await self._client.send("POST", "/orders", _body(SKU, qty=2), {"idempotency-key": key})
            self._note("POST with a used key", other, {422})

    async def _keyed(self, key: str, body: bytes) -> Answer | None:
        for _ in range(KEY_ATTEMPTS):
            try:
                answer = await self._client.send("POST", "/orders", body, {"idempotency-key": key})
            except UnansweredError:
                self._ledger.answers["POST with a key: unanswered"] += 1
            else:
                self._note("POST with a key", answer, {201})
                if answer.status == 201:
                    self._ledger.keys.setdefault(key, set()).add(self._accepted(answer).order_id)
                    return answer
            await asyncio.sleep(RETRY_SECONDS)
        self._ledger.problems.append(f"{key}: no answer to {KEY_ATTEMPTS} attempts")
        return None

    async def _misuse(self) -> None:
        body, headers, expected = self._chance.choice(_HOSTILE)
        try:
            answer = await self._client.send("POST", "/orders", body, headers)
        except UnansweredError:
            self._ledger.answers["hostile: unanswered"] += 1
        else:
            self._note("hostile", answer, {expected})

    def _note(self, what: str, answer: Answer, expected: set[int]) -> None:
        self._ledger.answers[f"{what}: {answer.status}"] += 1
        if answer.status not in expected and answer.status not in _MAYBE:
            self._ledger.problems.append(f"{what} was answered {answer.status}: {answer.body[:200]!r}")


def _body(sku: str, qty: int = 1) -> bytes:
    return msgspec.json.encode(
        {"userId": "soak", "items": [{"sku": sku, "qty": qty, "price": 1}], "amount": qty, "currency": "USD"}
    )
