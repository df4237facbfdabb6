"""The operations of the JSON API: each is declared once, decoded strictly, and described in the OpenAPI document."""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, get_args
from urllib.parse import parse_qsl, unquote

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orderstream.console.web.access import Visitor
from orderstream.http_server.problems import Problem

BODY_MAX_BYTES = 256 * 1024
PARAMETERS_MAX = 50
Method = Literal["GET", "POST"]

_JSON = "application/json"
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
"""NUL in a JSON text. PostgreSQL cannot store it."""
encode = msgspec.json.Encoder(decimal_format="string").encode


class Call(Struct, frozen=True):
    """One request for an operation. `query` and `body` have the types that the operation declares."""

    query: Any
    body: Any
    path: Mapping[str, str]
    visitor: Visitor


class Answer(Struct, frozen=True):
    """An answer with another status than that of its operation, for example 202 for work that goes on."""

    value: Any
    status: int


class Operation(Struct, frozen=True):
    """One operation. `acts` means that it changes something: it needs the operator's token and the method POST.

    `query` and `body` are Structs that forbid unknown fields. `answer` is the type of the response.
    """

    method: Method
    path: str
    summary: str
    answer: Any
    handle: Callable[[Call], Awaitable[Any]]
    query: type[Struct] | None = None
    body: type[Struct] | None = None
    acts: bool = False
    status: int = 200


def check(operations: Sequence[Operation]) -> None:
    """Raise ValueError if an operation acts by GET, or if a POST does not need the operator."""
    for operation in operations:
        if operation.method not in get_args(Method) or operation.acts != (operation.method == "POST"):
            raise ValueError(f"{operation.method} {operation.path}: operations act by POST, and only by POST")


def routes(operations: Sequence[Operation]) -> list[Route]:
    """Return the routes of these operations. Operations of one path share a route."""
    check(operations)
    by_path: dict[str, dict[str, Operation]] = {}
    for operation in operations:
        by_path.setdefault(operation.path, {})[operation.method] = operation
    return [Route(path, _endpoint(methods), methods=list(methods)) for path, methods in by_path.items()]


def _endpoint(methods: Mapping[str, Operation]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        operation = methods["GET" if request.method == "HEAD" else request.method]
        visitor: Visitor = request.state.visitor
        query = decode_query(request.url.query, operation.query)
        body = None if operation.body is None else await decode_body(request, operation.body)
        answer = await operation.handle(Call(query, body, decoded(request.path_params), visitor))
        if not isinstance(answer, Answer):
            answer = Answer(answer, operation.status)
        return Response(encode(answer.value), answer.status, media_type=_JSON)

    return endpoint


def decode_query(query: str, kind: type[Struct] | None) -> Any:
    """Return the query as a Struct. Values of a repeated name are joined by commas. Empty values count as absent.

    Raises Problem 400, which names the parameter.
    """
    values: dict[str, str] = {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=PARAMETERS_MAX, errors="strict")
    except ValueError as error:
        raise _invalid("query", f"The query cannot be read: {error}") from None
    for name, value in pairs:
        if value:
            values[name] = f"{values[name]},{value}" if name in values else value
    if kind is None:
        if pairs:
            raise _invalid("query", f"This operation has no parameters; the query has `{pairs[0][0][:100]}`.")
        return None
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        raise _invalid("query", f"{error}") from None


async def decode_body(request: Request, kind: type[Struct]) -> Any:
    """Return the body as a Struct. Raises Problem 400, 413 or 415."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _JSON:
        raise Problem(415, "unsupported-media-type", "Unsupported media type", f"Send content-type: {_JSON}.")
    body = await read_body(request)
    if _NUL.search(body):
        raise _invalid("body", "No text may contain NUL.")
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _invalid("body", f"{error}") from None
    except RecursionError:
        raise _invalid("body", "It is nested too deeply.") from None


async def read_body(request: Request, most_bytes: int = BODY_MAX_BYTES) -> bytes:
    """Return the whole body. Raises Problem 413."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > most_bytes:
            detail = f"A body may have at most {most_bytes} bytes."
            raise Problem(413, "body-too-large", "The body is too large", detail)
    return bytes(body)


def decoded(path_params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a path without percent-encoding. Raises Problem 404 if one is not UTF-8."""
    try:
        return {
            name: unquote(value, errors="strict") if isinstance(value, str) else value
            for name, value in path_params.items()
        }
    except UnicodeDecodeError:
        raise Problem(404, "not-found", "Not found", "There is no such page.") from None


def _invalid(part: str, detail: str) -> Problem:
    return Problem(400, f"invalid-{part}", f"The {part} is not valid", detail[:1_000])
