"""The Dockerfile copies existing files, checks the hash of every requirement, and its last stage only runs."""

import re
import tomllib

from orderstream.local.processes.state import checkout

ROOT = checkout()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

Instruction = tuple[str, str]


def _instructions() -> list[Instruction]:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    pairs = (line.split(maxsplit=1) for line in lines if line.strip())
    return [(name, " ".join(rest.split())) for name, rest in pairs]


def _stages() -> list[list[Instruction]]:
    stages: list[list[Instruction]] = []
    for name, rest in _instructions():
        if name == "FROM":
            stages.append([])
        if stages:
            stages[-1].append((name, rest))
    return stages


def _all(stage: list[Instruction], wanted: str) -> list[str]:
    return [rest for name, rest in stage if name == wanted]


def test_both_stages_begin_with_the_python_that_the_requirements_are_resolved_for() -> None:
    (base,) = (rest for name, rest in _instructions() if name == "ARG")
    found = re.fullmatch(r"PYTHON_IMAGE=python:(\d+\.\d+)\.\d+-slim-[a-z]+", base)
    assert found
    assert f"--python-version {found[1]} " in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert PROJECT["requires-python"] == f">={found[1]}"
    build, final = _stages()
    assert (build[0][1], final[0][1]) == ("${PYTHON_IMAGE} AS build", "${PYTHON_IMAGE}")


def test_every_copied_file_exists_and_nothing_else_reaches_the_build() -> None:
    build, _ = _stages()
    copied = {source for rest in _all(build, "COPY") for source in rest.split()[:-1]}
    assert all((ROOT / source).exists() for source in copied)
    assert all((ROOT / source).is_dir() == source.endswith("/") for source in copied)
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule.removeprefix("!") for rule in rules if rule.startswith("!")} == copied


def test_everything_that_is_fetched_is_checked_by_its_hash() -> None:
    build, _ = _stages()
    commands = [command for rest in _all(build, "RUN") for command in rest.split(" && ")]
    fetching = [
        command for command in commands if re.search(r"pip install|uv build", command) and "--no-deps" not in command
    ]
    assert len(fetching) == 3
    assert all("--require-hashes" in command for command in fetching)
    assert "dev.txt" not in "".join(command for command in commands if "pip install" in command)


def test_the_last_stage_runs_the_finished_environment_as_an_ordinary_user() -> None:
    _, final = _stages()
    assert _all(final, "COPY") == ["--from=build /opt/orderstream /opt/orderstream"]
    (create_user,) = _all(final, "RUN")
    (user,) = _all(final, "USER")
    assert user != "0"
    assert create_user == f"useradd --uid {user} --no-create-home --shell /usr/sbin/nologin orderstream"
    assert _all(final, "ENTRYPOINT") == ['["orderstream"]']
    assert list(PROJECT["scripts"]) == ["orderstream"]
