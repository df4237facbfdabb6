"""Canary for httptools: the behaviour that the request parser relies on and that httptools does not document.

The request parser uses the public API of httptools only. `requirements/` pins the version. If one of these tests fails
after an update, its assertion names the assumption that broke, and `http/request_parser.py` has to change.
"""

from typing import Any

import httptools
import pytest

GET = b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n"


class Callbacks:
    """Records the calls of the parser."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def on_message_begin(self) -> None:
        self.calls.append("begin")

    def on_url(self, url: bytes) -> None:
        self.calls.append(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.calls.append((name, value))

    def on_headers_complete(self) -> None:
        self.calls.append("head")

    def on_body(self, body: bytes) -> None:
        self.calls.append(body)

    def on_message_complete(self) -> None:
        self.calls.append("end")


def test_the_public_names_exist() -> None:
    parser = httptools.HttpRequestParser(object())
    for name in ("feed_data", "get_method", "get_http_version", "should_keep_alive", "should_upgrade"):
        assert callable(getattr(parser, name)), f"HttpRequestParser has no {name}"
    for error in (httptools.HttpParserCallbackError, httptools.HttpParserInvalidMethodError):
        assert issubclass(error, httptools.HttpParserError), f"{error} is not a parser error"


def test_callbacks_run_inside_feed_data_and_in_the_order_of_the_bytes() -> None:
    callbacks = Callbacks()
    httptools.HttpRequestParser(callbacks).feed_data(GET.replace(b"\r\n\r\n", b"\r\ncontent-length: 1\r\n\r\nb"))
    expected = ["begin", b"/a", (b"host", b"x"), (b"content-length", b"1"), "head", b"b", "end"]
    assert callbacks.calls == expected, "the sequence of callbacks has changed"


def test_an_error_of_a_callback_is_the_context_of_the_parser_s_error() -> None:
    class Failing(Callbacks):
        def on_url(self, _url: bytes) -> None:
            raise LookupError("mine")

    with pytest.raises(httptools.HttpParserCallbackError) as caught:
        httptools.HttpRequestParser(Failing()).feed_data(GET)
    assert isinstance(caught.value.__context__, LookupError), "a Problem raised in a callback would be lost"


def test_an_upgrade_ends_the_feed_with_the_number_of_bytes_it_has_read() -> None:
    callbacks = Callbacks()
    head = GET.replace(b"\r\n\r\n", b"\r\nconnection: upgrade\r\nupgrade: h2c\r\ncontent-length: 4\r\n\r\n")
    with pytest.raises(httptools.HttpParserUpgrade) as caught:
        httptools.HttpRequestParser(callbacks).feed_data(head + b"body")
    assert caught.value.args[0] == len(head), "the body after an offered upgrade would be lost"
    assert callbacks.calls[-1] == "end", "a request with an upgrade no longer ends after its head"


def test_an_unknown_method_has_an_error_of_its_own() -> None:
    with pytest.raises(httptools.HttpParserInvalidMethodError):
        httptools.HttpRequestParser(Callbacks()).feed_data(GET.replace(b"GET", b"BREW"))


def test_trailer_fields_arrive_through_on_header_after_the_head() -> None:
    callbacks = Callbacks()
    chunked = GET.replace(b"\r\n\r\n", b"\r\ntransfer-encoding: chunked\r\n\r\n1\r\nb\r\n0\r\nx: y\r\n\r\n")
    httptools.HttpRequestParser(callbacks).feed_data(chunked)
    assert callbacks.calls[-3:] == [b"b", (b"x", b"y"), "end"], "trailer fields would not be counted"


def test_a_parser_reads_the_next_request_of_a_connection() -> None:
    callbacks = Callbacks()
    parser = httptools.HttpRequestParser(callbacks)
    parser.feed_data(GET)
    parser.feed_data(GET)
    assert callbacks.calls.count("end") == 2, "a parser must serve all requests of a connection"


def test_the_fields_of_the_head_arrive_before_on_headers_complete_asks_for_an_upgrade() -> None:
    seen: list[bool] = []

    class Asking(Callbacks):
        def on_headers_complete(self) -> None:
            seen.append(parser.should_upgrade())

    parser = httptools.HttpRequestParser(Asking())
    with pytest.raises(httptools.HttpParserUpgrade):
        parser.feed_data(GET.replace(b"\r\n\r\n", b"\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"))
    assert seen == [True], "should_upgrade() must be known when the head is complete"
