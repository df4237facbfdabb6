"""Conditional requests: If-Match and If-None-Match compare the version of an order (RFC 9110, 13)."""

from collections.abc import Mapping

from msgspec import Struct

from orderstream.http_server.header_fields import entity_tags


class Condition(Struct, frozen=True):
    """The entity tags in the two fields of a request. None means that the field is absent."""

    if_match: tuple[bytes, ...] | None = None
    if_none_match: tuple[bytes, ...] | None = None

    def matches(self, etag: bytes) -> bool:
        """Return whether If-Match allows this version. The comparison is strong, so a weak tag never matches."""
        return self.if_match is None or self.if_match == (b"*",) or etag in self.if_match

    def none_matches(self, etag: bytes) -> bool:
        """Return whether If-None-Match allows this version. The comparison is weak."""
        if self.if_none_match is None:
            return True
        return self.if_none_match != (b"*",) and etag not in (tag.removeprefix(b"W/") for tag in self.if_none_match)

    def allows_change(self, etag: bytes) -> bool:
        """Return whether both fields allow a change of this version."""
        return self.matches(etag) and self.none_matches(etag)


NO_CONDITION = Condition()


def read_condition(headers: Mapping[bytes, bytes]) -> Condition:
    """Read the conditions of a request. Conditions on dates are ignored, because responses have no Last-Modified."""
    if_match, if_none_match = headers.get(b"if-match"), headers.get(b"if-none-match")
    if if_match is None and if_none_match is None:
        return NO_CONDITION
    return Condition(
        None if if_match is None else tuple(entity_tags(if_match)),
        None if if_none_match is None else tuple(entity_tags(if_none_match)),
    )


def entity_tag(version: int) -> bytes:
    """Return the entity tag of a version of an order."""
    return b'"%d"' % version
