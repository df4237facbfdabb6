"""Sends the request of a curl command line and prints the body of the response. Knows the options of our examples only.

An option that it does not know is an error, so that no example can depend on an option that is not tested.
"""

import argparse
import sys
from http.client import HTTPConnection
from urllib.parse import urlsplit

LIMIT_SECONDS = 30


def main(arguments: list[str]) -> None:
    """Send the request that the arguments describe. Raises OSError if the server cannot be reached."""
    parser = argparse.ArgumentParser(prog="curl", allow_abbrev=False)
    parser.add_argument("-s", action="store_true", help="print no progress")
    parser.add_argument("-i", action="store_true", help="print the head of the response too")
    parser.add_argument("--noproxy", help="the hosts that need no proxy; this program uses none")
    parser.add_argument("-X", dest="method")
    parser.add_argument("-H", dest="headers", action="append", default=[])
    parser.add_argument("-d", dest="body")
    parser.add_argument("url")
    given = parser.parse_args(arguments)
    headers = dict(header.split(": ", 1) for header in given.headers)
    address = urlsplit(given.url)
    connection = HTTPConnection(address.hostname or "", address.port or 80, timeout=LIMIT_SECONDS)
    path = address.path + (f"?{address.query}" if address.query else "")
    # curl removes the line breaks of -d only when it reads a file.
    body = None if given.body is None else given.body.encode()
    connection.request(given.method or ("GET" if body is None else "POST"), path or "/", body, headers)
    response = connection.getresponse()
    if given.i:
        sys.stdout.write(f"HTTP/1.1 {response.status} {response.reason}\r\n{response.headers}")
    sys.stdout.flush()
    sys.stdout.buffer.write(response.read())
    connection.close()


if __name__ == "__main__":
    main(sys.argv[1:])
