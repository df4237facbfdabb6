"""Header fields are parsed as RFC 9110 defines them. A comma or semicolon in quotes does not separate."""

import pytest

from orderstream.http_server.conditions import Condition, entity_tag, read_condition
from orderstream.http_server.header_fields import PARTS_MAX, entity_tags, media_type, preferences
from orderstream.http_server.request_body import _declares_more_than, _is_encoded, _is_json


@pytest.mark.parametrize(
    "field",
    [
        b"application/json",
        b"Application/JSON",
        b"application/json;",
        b"application/json;;",
        b"application/json ; ;\t",
        b" application/json ",
        b"application/json;version=1",
        b"application/json; version=1; charset=utf-8",
        b"application/json;charset=utf-8",
        b"application/json;charset=UTF-8",
        b'application/json; Charset="Utf-8"',
        b'application/json; charset="utf\\-8"',
        b"application/json; charset = utf-8",
        b'application/json\t;\tcharset\t=\t"utf-8"\t',
        b"application/json; charset=utf8",
        b'application/json; profile="a;charset=latin-1"',
        b'application/json; profile="\\";charset=latin-1"',
        b'application/json; profile=""',
        b"application/json; odd",
    ],
)
def test_json_in_utf_8_is_accepted(field: bytes) -> None:
    assert _is_json(field)


@pytest.mark.parametrize(
    "field",
    [
        b"",
        b";",
        b"json",
        b"application",
        b"application/",
        b"/json",
        b"application /json",
        b"application/json5",
        b"application/jsonp; charset=utf-8",
        b"application/problem+json",
        b"text/json",
        b"*/*",
        b"application/json; charset=latin-1",
        b"application/json; charset=us-ascii",
        b"application/json; charset=utf-16",
        b'application/json; charset="utf-8, latin-1"',
        b"application/json; charset",
        b"application/json; charset=",
        b'application/json; charset=""',
        b"application/json; charset=utf-8; charset=latin-1",
        b"application/json; version=1; charset=latin-1",
        b"application/json, text/plain",
        b"application/json, application/json",
        b"application/json; charset=utf-8, text/plain",
        b'application/json; profile="unended',
        b"application/json version=1",
        b"application/json; charset=utf-8 x",
        b"\xff/json",
    ],
)
def test_other_content_types_are_not_accepted(field: bytes) -> None:
    assert not _is_json(field)


def test_the_number_of_parts_of_a_field_is_limited() -> None:
    assert _is_json(b"application/json" + b";a" * PARTS_MAX)
    assert not _is_json(b"application/json" + b";a" * (PARTS_MAX + 1))
    assert len(list(preferences(b"a, " * (PARTS_MAX + 1)))) == PARTS_MAX
    assert list(preferences(b"a" + b";b" * (PARTS_MAX + 1) + b", wait=5")) == [("a", ""), ("wait", "5")]


def test_parameters_keep_their_order_and_case() -> None:
    declared = media_type(b'Text/X ; A=B ; c = "d\\"; e=f" ; G')
    assert declared is not None
    assert declared.name == "text/x"
    assert declared.parameters == [("a", "B"), ("c", 'd"; e=f'), ("g", "")]


@pytest.mark.parametrize("field", [None, b"", b"identity", b"Identity", b" identity , IDENTITY", b",identity,"])
def test_identity_does_not_count_as_an_encoding(field: bytes | None) -> None:
    assert not _is_encoded(field)


@pytest.mark.parametrize("field", [b"gzip", b"identity, gzip", b"gzip, identity", b"br", b"identityx", b'"identity"'])
def test_other_codings_count_as_an_encoding(field: bytes) -> None:
    assert _is_encoded(field)


def test_a_content_length_that_is_not_a_number_is_ignored() -> None:
    for field in (b"", b"5, 5", b"-1", b"+1", b"1_000", b"\xb2", b"0", b"10"):
        assert not _declares_more_than(field, 10)
    for field in (b"11", b"9" * 5_000, b"0" * 5_000):
        assert _declares_more_than(field, 10)


@pytest.mark.parametrize(
    ("field", "found"),
    [
        (b"", []),
        (b",, ,", []),
        (b"wait=2", [("wait", "2")]),
        (b'foo="a,wait=2"', [("foo", "a,wait=2")]),
        (b'foo="a\\",wait=2"', [("foo", 'a",wait=2')]),
        (b'foo="a,wait=2', [("foo", "")]),
        (b"foo;wait=2", [("foo", "")]),
        (b'foo=1;bar="x,wait=2", wait=3', [("foo", "1"), ("wait", "3")]),
        (b"Foo = Bar ; x , WAIT\t=\t5", [("foo", "Bar"), ("wait", "5")]),
        (b'wait="5"', [("wait", "5")]),
        (b"wait=5 junk, foo", [("wait", ""), ("foo", "")]),
        (b"(wait=5), foo", [("foo", "")]),
        (b'"wait=5", foo', [("foo", "")]),
        (b"wait=, foo", [("wait", ""), ("foo", "")]),
        (b'wait="", foo', [("wait", ""), ("foo", "")]),
    ],
)
def test_preferences_are_read_in_their_order(field: bytes, found: list[tuple[str, str]]) -> None:
    assert list(preferences(field)) == found


@pytest.mark.parametrize(
    ("field", "found"),
    [
        (b"*", [b"*"]),
        (b" * ", [b"*"]),
        (b'"1"', [b'"1"']),
        (b'"1", W/"2" ,"3"', [b'"1"', b'W/"2"', b'"3"']),
        (b',, "1",,"2",', [b'"1"', b'"2"']),
        (b'"a,b"', [b'"a,b"']),
        (b'"x, \\"3\\""', []),
        (b'"a,"3""', []),
        (b'"\xff"', [b'"\xff"']),
        (b'""', [b'""']),
        (b"1", []),
        (b'w/"1"', []),
        (b'"1" "2"', []),
        (b'"1", 2, "3"', [b'"1"']),
        (b'*, "1"', []),
        (b'"1', []),
        (b"", []),
    ],
)
def test_entity_tags_are_read_up_to_the_first_malformed_one(field: bytes, found: list[bytes]) -> None:
    assert entity_tags(field) == found


@pytest.mark.parametrize(
    ("field", "if_match", "if_none_match"),
    [
        (b'"3"', True, False),
        (b'"2", "3"', True, False),
        (b'W/"3"', False, False),
        (b'"2", W/"3"', False, False),
        (b"*", True, False),
        (b'"2"', False, True),
        (b'"2,3"', False, True),
        (b"3", False, True),
        (b"", False, True),
    ],
)
def test_if_match_compares_strongly_and_if_none_match_weakly(field: bytes, if_match: bool, if_none_match: bool) -> None:
    etag = entity_tag(3)
    assert read_condition({b"if-match": field}).matches(etag) is if_match
    assert read_condition({b"if-match": field}).none_matches(etag)
    assert read_condition({b"if-none-match": field}).none_matches(etag) is if_none_match
    assert read_condition({b"if-none-match": field}).matches(etag)
    both = Condition((b'"3"',), (b'"3"',))
    assert not both.allows_change(etag)
