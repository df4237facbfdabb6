"""Reads a submitted form into the same Struct as the body of the operation that does the same."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import Struct
from starlette.requests import Request

from orderstream.console.web.pages import form_of
from orderstream.http_server.problems import Problem

T = TypeVar("T", bound=Struct)


async def form_as(request: Request, kind: type[T], fields: Mapping[str, Callable[[str], Any]]) -> T:
    """Return the fields of a submitted form as `struct_of` does. Raises Problem 400."""
    return struct_of(await form_of(request), kind, fields)


def struct_of(form: Mapping[str, str], kind: type[T], fields: Mapping[str, Callable[[str], Any]]) -> T:
    """Return the fields of a form, each converted by its function. Fields of other names are ignored.

    Raises Problem 400, which names the field.
    """
    values = {}
    for name, convert in fields.items():
        if name in form:
            try:
                values[name] = convert(form[name].strip())
            except ValueError:
                raise _invalid(f"{name}: {form[name][:100]!r} is not a number") from None
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise _invalid(f"{error}") from None


def _invalid(detail: str) -> Problem:
    return Problem(400, "invalid-form", "The form is not valid", detail[:1_000])
