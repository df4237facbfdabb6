"""Requests that follow or break the rules of RFC 9110 and RFC 9112 for a server, each with its status."""

from msgspec import Struct

from tests.support.bodies import README

GET = b"GET /livez HTTP/1.1\r\n"


class Rule(Struct, frozen=True):
    """A request, its status, and whether the connection stays open after the response."""

    where: str
    what: str
    sent: bytes
    status: int
    keeps_alive: bool = False


def post(fields: bytes, body: bytes = README, version: bytes = b"1.1") -> bytes:
    """Return a POST of an order with these fields about its length."""
    return b"POST /orders HTTP/%b\r\nhost: x\r\ncontent-type: application/json\r\n%b\r\n%b" % (version, fields, body)


ONE_CHUNK = b"%x\r\n%b\r\n0\r\n\r\n" % (len(README), README)
LENGTH = b"content-length: %d\r\n" % len(README)
COOKED = b"transfer-encoding: %b\r\n"

RULES = [
    # Host and request target
    Rule("9112 3.2", "no Host", GET + b"\r\n", 400),
    Rule("9112 3.2", "two Hosts", GET + b"host: x\r\nhost: x\r\n\r\n", 400),
    Rule("9112 3.2", "two Hosts of HTTP/1.0", b"GET /livez HTTP/1.0\r\nhost: x\r\nhost: y\r\n\r\n", 400),
    Rule("9112 3.2", "Host with user", GET + b"host: a@b\r\n\r\n", 400),
    Rule("9112 3.2", "Host with a path", GET + b"host: x/y\r\n\r\n", 400),
    Rule("9112 3.2", "two names in Host", GET + b"host: x, y\r\n\r\n", 400),
    Rule("9112 3.2", "Host with white space", GET + b"host: x y\r\n\r\n", 400),
    Rule("9112 3.2", "Host with a wrong port", GET + b"host: x:http\r\n\r\n", 400),
    Rule("9112 3.2", "an empty Host", GET + b"host:\r\n\r\n", 200, True),
    Rule("9112 3.2", "Host with a port", GET + b"host: x.example:3000\r\n\r\n", 200, True),
    Rule("9112 3.2", "Host with IPv6", GET + b"host: [::1]:3000\r\n\r\n", 200, True),
    Rule("9112 3.2", "HTTP/1.0 without Host", b"GET /livez HTTP/1.0\r\n\r\n", 200),
    Rule("9112 3.2.1", "a path with a query", b"GET /livez?a=b HTTP/1.1\r\nhost: x\r\n\r\n", 200, True),
    Rule("9112 3.2.1", "a fragment", b"GET /livez#a HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    Rule("9112 3.2.1", "no path", b"GET livez HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    Rule("9112 3.2.1", "two slashes are a path", b"GET //livez HTTP/1.1\r\nhost: x\r\n\r\n", 404, True),
    Rule("3986 2.3", "an encoded letter", b"GET /%6Civez HTTP/1.1\r\nhost: x\r\n\r\n", 200, True),
    Rule("3986 2.2", "an encoded slash", b"GET /docs%2Fstart.js HTTP/1.1\r\nhost: x\r\n\r\n", 404, True),
    Rule("3986 2.2", "an encoded line feed", b"GET /livez%0A HTTP/1.1\r\nhost: x\r\n\r\n", 404, True),
    Rule("9112 3.2.2", "absolute form", b"GET http://y/livez HTTP/1.1\r\nhost: x\r\n\r\n", 200, True),
    Rule("9112 3.2.2", "absolute form in capitals", b"GET HTTP://Y:80/livez?a HTTP/1.1\r\nhost: x\r\n\r\n", 200, True),
    Rule("9112 3.2.2", "absolute form without Host", b"GET http://y/livez HTTP/1.1\r\n\r\n", 400),
    Rule("9112 3.2.2", "absolute form without a path", b"GET http://y HTTP/1.1\r\nhost: x\r\n\r\n", 404, True),
    Rule("9110 4.2.1", "absolute form without a host", b"GET http:///livez HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    Rule("9110 4.2.4", "absolute form with user", b"GET http://a:b@y/livez HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    Rule("9110 7.4", "another scheme", b"GET https://y/livez HTTP/1.1\r\nhost: x\r\n\r\n", 421),
    Rule("9112 3.2.3", "authority form without CONNECT", b"GET y:80 HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    Rule("9112 3.2.3", "CONNECT", b"CONNECT y:80 HTTP/1.1\r\nhost: y:80\r\n\r\n", 501),
    Rule("9112 3.2.4", "asterisk form", b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n", 404, True),
    Rule("9112 3.2.4", "asterisk form of GET", b"GET * HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    Rule("9112 3", "white space in the target", b"GET /li vez HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    Rule("9112 3", "no version", b"GET /livez\r\nhost: x\r\n\r\n", 400),
    # Methods
    Rule("9110 9.1", "an unknown method", b"BREW /livez HTTP/1.1\r\nhost: x\r\n\r\n", 501),
    Rule("9110 9.1", "methods have a case", b"get /livez HTTP/1.1\r\nhost: x\r\n\r\n", 501),
    Rule("9110 15.5.6", "a method of other resources", b"DELETE /livez HTTP/1.1\r\nhost: x\r\n\r\n", 405, True),
    # Versions
    Rule("9112 2.3", "another version", b"GET /livez HTTP/9.9\r\nhost: x\r\n\r\n", 400),
    Rule("9110 15.6.6", "HTTP/2.0", b"GET /livez HTTP/2.0\r\nhost: x\r\n\r\n", 505),
    Rule("9112 3", "HTTP/0.9", b"GET /livez HTTP/0.9\r\nhost: x\r\n\r\n", 400),
    Rule("9112 2.3", "the name has a case", b"GET /livez http/1.1\r\nhost: x\r\n\r\n", 400),
    # Lines and fields
    Rule("9112 2.2", "empty lines before the request", b"\r\n\r\n" + GET + b"host: x\r\n\r\n", 200, True),
    Rule("9112 2.2", "white space before the first field", GET + b" host: x\r\n\r\n", 400),
    Rule("9112 2.2", "a bare CR", GET + b"host: x\r\na: b\rc\r\n\r\n", 400),
    Rule("9112 2.2", "a bare CR in the request line", b"GET /livez\rHTTP/1.1\r\nhost: x\r\n\r\n", 400),
    Rule("9112 5.1", "white space before the colon", GET + b"host: x\r\na : b\r\n\r\n", 400),
    Rule("9112 5.1", "a tab before the colon", GET + b"host: x\r\na\t: b\r\n\r\n", 400),
    Rule("9112 5.1", "white space around a value", GET + b"host: \t x \t\r\n\r\n", 200, True),
    Rule("9112 5", "a field without a colon", GET + b"host: x\r\na\r\n\r\n", 400),
    Rule("9112 5", "a field without a name", GET + b"host: x\r\n: b\r\n\r\n", 400),
    Rule("9112 5.2", "a folded field", GET + b"host: x\r\na: b\r\n c\r\n\r\n", 400),
    Rule("9112 5.2", "a field folded by a tab", GET + b"host: x\r\na: b\r\n\tc\r\n\r\n", 400),
    Rule("9112 5.2", "a field folded into nothing", GET + b"host: x\r\na: b\r\n \r\n\r\n", 400),
    Rule("9110 5.5", "NUL in a value", GET + b"host: x\r\na: b\0c\r\n\r\n", 400),
    Rule("9110 5.6.2", "a name that is no token", GET + b"host: x\r\na(b): c\r\n\r\n", 400),
    Rule("9110 5.1", "names have no case", GET + b"HOST: x\r\n\r\n", 200, True),
    Rule("9110 5.1", "unknown fields", GET + b"host: x\r\nfoo: bar\r\n\r\n", 200, True),
    # Framing
    Rule("9112 6.1", "length and coding", post(LENGTH + COOKED % b"chunked", ONE_CHUNK), 400),
    Rule("9112 6.1", "coding and length", post(COOKED % b"chunked" + LENGTH, ONE_CHUNK), 400),
    Rule("9112 6.1", "a coding of HTTP/1.0", post(COOKED % b"chunked", ONE_CHUNK, b"1.0"), 400),
    Rule("9112 6.1", "an unknown coding, chunked", post(COOKED % b"gzip, chunked", ONE_CHUNK), 501),
    Rule("9112 6.3", "a coding that is not chunked", post(COOKED % b"gzip", ONE_CHUNK), 400),
    Rule("9112 6.3", "identity", post(COOKED % b"identity", ONE_CHUNK), 400),
    Rule("9112 6.3", "chunked is not the last", post(COOKED % b"chunked, gzip", ONE_CHUNK), 400),
    Rule("9112 6.3", "chunked in two lines", post(COOKED % b"chunked" + COOKED % b"gzip", ONE_CHUNK), 400),
    Rule("9112 6.1", "chunked twice", post(COOKED % b"chunked, chunked", ONE_CHUNK), 400),
    Rule("9112 6.1", "chunked in two lines", post(COOKED % b"chunked" * 2, ONE_CHUNK), 400),
    Rule("9112 6.1", "not quite chunked", post(COOKED % b"\x0bchunked", ONE_CHUNK), 400),
    Rule("9112 6.1", "an empty coding", post(COOKED % b"", ONE_CHUNK), 400),
    Rule("9112 7", "codings have no case", post(COOKED % b" Chunked ", ONE_CHUNK), 201, True),
    Rule("9112 6.3", "two lengths", post(LENGTH * 2), 400),
    Rule("9112 6.3", "two lengths in a line", post(b"content-length: 3, 3\r\n"), 400),
    Rule("9112 6.3", "a length with a sign", post(b"content-length: +3\r\n"), 400),
    Rule("9112 6.3", "a negative length", post(b"content-length: -3\r\n"), 400),
    Rule("9112 6.3", "a length that is no decimal", post(b"content-length: 0x3\r\n"), 400),
    Rule("9112 6.3", "an empty length", post(b"content-length:\r\n"), 400),
    Rule("9112 6.3", "a length beyond all numbers", post(b"content-length: 18446744073709551617\r\n"), 400),
    Rule("9112 6.3", "a length of 6,000 digits", post(b"content-length: " + b"0" * 6_000 + b"\r\n"), 400),
    Rule("9112 6.3", "no framing is no body", post(b"", b""), 400, True),
    Rule(
        "9112 7.1", "chunk extensions", post(COOKED % b"chunked", ONE_CHUNK.replace(b"\r\n", b";a=b\r\n", 1)), 201, True
    ),
    Rule("9112 7.1", "a size that is no hexadecimal", post(COOKED % b"chunked", b"0x5\r\n"), 400),
    Rule("9112 7.1", "a size with a sign", post(COOKED % b"chunked", b"-5\r\n"), 400),
    Rule("9112 7.1", "a size beyond all numbers", post(COOKED % b"chunked", b"f" * 17 + b"\r\n"), 400),
    Rule("9112 7.1", "a chunk longer than its size", post(COOKED % b"chunked", b"1\r\nab\r\n"), 400),
    Rule("9112 7.1", "a size with leading zeros", post(COOKED % b"chunked", b"000" + ONE_CHUNK), 201, True),
    Rule("9112 7.1.2", "trailers", post(COOKED % b"chunked", ONE_CHUNK[:-2] + b"a: b\r\n\r\n"), 201, True),
    Rule(
        "9112 7.1.2", "a trailer that is none", post(COOKED % b"chunked", ONE_CHUNK[:-2] + b"a : b\r\n\r\n"), 400, False
    ),
    Rule(
        "9110 6.5.1",
        "close in a trailer",
        post(COOKED % b"chunked", ONE_CHUNK[:-2] + b"connection: close\r\n\r\n"),
        201,
        True,
    ),
    # Persistence
    Rule("9112 9.3", "HTTP/1.1", GET + b"host: x\r\n\r\n", 200, True),
    Rule("9112 9.3", "HTTP/1.0", b"GET /livez HTTP/1.0\r\nhost: x\r\n\r\n", 200),
    Rule("9112 9.6", "close", GET + b"host: x\r\nconnection: close\r\n\r\n", 200),
    Rule("9112 9.6", "close among others", GET + b"host: x\r\nconnection: te, Close\r\n\r\n", 200),
    Rule("9112 9.6", "close in the second line", GET + b"host: x\r\nconnection: te\r\nconnection: close\r\n\r\n", 200),
    Rule("9110 7.6.1", "unknown options", GET + b"host: x\r\nconnection: foo\r\n\r\n", 200, True),
    Rule("9110 7.8", "an upgrade", GET + b"host: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n", 200, True),
    Rule("9110 10.1.1", "an expectation that cannot be met", GET + b"host: x\r\nexpect: a\r\n\r\n", 417),
    Rule("9110 5.6.1.2", "an empty expectation", GET + b"host: x\r\nexpect:\r\n\r\n", 200, True),
    Rule("9110 5.6.1.2", "empty elements", GET + b"host: x\r\nexpect: , 100-continue ,\r\n\r\n", 200, True),
    Rule("9110 10.1.4", "TE", GET + b"host: x\r\nte: trailers\r\nconnection: te\r\n\r\n", 200, True),
]
