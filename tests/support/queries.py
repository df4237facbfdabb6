"""All SQL statements of the services, for tests that check each of them."""

import re
from pathlib import Path

from msgspec import Struct

import orderstream
from orderstream.postgres.sql import load

SOURCE = Path(orderstream.__file__).parent
_PARAMETER = re.compile(r"%\(([a-z_]+)\)[sbt]")


class Query(Struct, frozen=True):
    """A block of a .sql file: its package, its name, and its text with %(name)s parameters."""

    room: str
    name: str
    text: str

    @property
    def numbered(self) -> str:
        """The text with $1, $2, … as parameters, for PREPARE."""
        names: list[str] = []

        def number(match: re.Match[str]) -> str:
            if match[1] not in names:
                names.append(match[1])
            return f"${names.index(match[1]) + 1}"

        return _PARAMETER.sub(number, self.text).replace("%%", "%")

    @property
    def names(self) -> list[str]:
        """The names of the parameters, in the sequence of their numbers."""
        return list(dict.fromkeys(_PARAMETER.findall(self.text)))

    @property
    def utility(self) -> bool:
        """Whether it is a statement that has no plan."""
        return self.text.split()[0].upper() not in ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")


def queries() -> list[Query]:
    """Return every block of every .sql file that is not a migration."""
    files = sorted(path for path in SOURCE.rglob("*.sql") if path.parent.name != "migrations")
    return [
        Query(path.relative_to(SOURCE).parts[0], name, text)
        for path in files
        for package in [".".join(("orderstream", *path.parent.relative_to(SOURCE).parts))]
        for name, text in load(package, path.name).items()
    ]
