"""Wherever the network splits the bytes of a connection, the parser finds the same requests in them."""

import random

import pytest

from orderstream.http_server.problems import Problem
from orderstream.http_server.request_head import Fields, RequestHead
from orderstream.http_server.request_parser import RequestParser
from tests.support.http_rules import GET, RULES, Rule

NEXT = GET + b"host: x\r\n\r\n" + GET + b"host: x\r\na: b\r\n c\r\n\r\n"
"""A valid request and one with a folded field, which only the parser refuses, not llhttp."""
RANDOM_SPLITS = 100


class Requests:
    """Keeps what the parser has found: heads, whole bodies, and the status of a refusal."""

    def __init__(self) -> None:
        self.found: list[object] = []
        self._body = b""

    def begin_request(self) -> None:
        self._body = b""

    def take_head(self, head: RequestHead, fields: Fields, *, keep_alive: bool) -> None:
        self.found.append((head, list(fields), keep_alive))

    def take_body(self, body: bytes) -> None:
        self._body += body

    def end_request(self) -> None:
        self.found.append(self._body)


def parse(parts: list[bytes]) -> list[object]:
    """Return what the parser finds in the parts of a stream of bytes."""
    requests = Requests()
    parser = RequestParser(requests)
    try:
        for part in parts:
            at = 0
            while at < len(part):
                end = parser.end_of_piece(part, at)
                parser.feed(part[at:end])
                at = end
    except Problem as problem:
        requests.found.append(problem.status)
    return requests.found


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Return `data` cut at these places."""
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


# The parser refuses an unknown method with 400 instead of 501 if it has not seen the whole line.
@pytest.mark.parametrize(
    "rule", [rule for rule in RULES if rule.where != "9110 9.1"], ids=lambda rule: f"{rule.where} {rule.what}"
)
def test_a_split_changes_nothing(rule: Rule) -> None:
    data = rule.sent + NEXT
    whole = parse([data])
    if rule.keeps_alive:
        assert whole[-1] == 400
    splits = [[place] for place in range(1, len(data))]
    choice = random.Random(rule.what)
    splits += [sorted(choice.sample(range(1, len(data)), choice.randint(2, 40))) for _ in range(RANDOM_SPLITS)]
    for places in splits:
        assert parse(cut(data, places)) == whole, places
