"""Loads named SQL. Each package has its statements in .sql files, in blocks that begin with `-- name: <name>`."""

import re
from importlib import resources

_NAME = re.compile(r"^-- name: *([a-z0-9_]+) *$", re.MULTILINE)


def load(package: str, file: str = "queries.sql") -> dict[str, str]:
    """Return the statements of `file` in `package` by their names, without comments.

    Raises ValueError if two blocks have the same name, or if a statement stands before the first block.
    """
    text = resources.files(package).joinpath(file).read_text(encoding="utf-8")
    preamble, *rest = _NAME.split(text)
    if _strip(preamble):
        raise ValueError(f"{package}/{file}: a statement stands before the first '-- name:'")
    names, bodies = rest[::2], rest[1::2]
    if len(set(names)) != len(names):
        raise ValueError(f"{package}/{file}: two blocks share a name")
    return {name: _strip(body) for name, body in zip(names, bodies, strict=True)}


def _strip(body: str) -> str:
    lines = (line for line in body.splitlines() if not line.lstrip().startswith("--"))
    return "\n".join(lines).strip().rstrip(";")
