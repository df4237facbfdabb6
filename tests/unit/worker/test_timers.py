"""Every timer function is registered, and the loop of its process runs every registered timer."""

import ast
from collections.abc import Iterator

import pytest

from orderstream.settings import Settings
from tests.support.queries import SOURCE
from tests.support.wiring import WORKERS, wired_handler

Function = ast.FunctionDef


def _functions(service: str) -> Iterator[Function]:
    for path in sorted((SOURCE / service.replace("-", "_")).glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        yield from (node for node in ast.walk(tree) if isinstance(node, Function))


def _is_timer(function: Function) -> bool:
    """Say whether a function has the signature of `Timer.run`."""
    arguments = [argument for argument in function.args.args if argument.arg != "self"]
    return (
        [argument.annotation and ast.unparse(argument.annotation) for argument in arguments] == ["Connection"]
        and function.returns is not None
        and ast.unparse(function.returns) == "bool"
    )


@pytest.mark.parametrize("service", WORKERS)
def test_the_process_runs_each_timer_function_of_its_service(monkeypatch: pytest.MonkeyPatch, service: str) -> None:
    handler = wired_handler(monkeypatch, service, Settings.model_validate({}))
    written = {function.name for function in _functions(service) if _is_timer(function)}
    assert {timer.run.__name__ for timer in handler.timers} == written
    assert len({timer.name for timer in handler.timers}) == len(handler.timers) == len(written)


def test_the_signature_check_finds_the_timer_functions() -> None:
    found = {service: sum(map(_is_timer, _functions(service))) for service in WORKERS}
    assert found["order-service"] >= 3
    assert found["payment-worker"] >= 2
