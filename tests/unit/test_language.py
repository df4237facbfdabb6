"""Documents, docstrings, comments, messages and test names are in plain English.

The word list holds words of a private dialect that readers had to decode. It is a floor: a text without these words can
still be hard to read.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from orderstream.local.processes.state import checkout

ROOT = checkout()
SOURCE = sorted((ROOT / "src").rglob("*.py"))
TESTS = sorted(path for folder in ("tests", "contracts", "docs") for path in (ROOT / folder).rglob("*.py"))
# Not the migrations: `migrate` refuses a file that was changed after it was applied.
SQL = [path for path in sorted((ROOT / "src").rglob("*.sql")) if path.parent.name != "migrations"]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(path for folder in ("docs", "tests", ".github") for path in (ROOT / folder).rglob("*.md"))]
)
OTHERS = [
    *(ROOT / name for name in ("Makefile", "Dockerfile", "docker-compose.yml", ".ci/run", "k6/orderstream.js")),
    *sorted([*(ROOT / ".github").rglob("*.yml"), *(ROOT / "tests").rglob("*.js")]),
]

DIALECT = (
    *("whoever", "whatever", "whomever", "nobody", "anew", "for ever", "one of whose"),
    *("befall", "befalls", "befell", "mend", "mends", "mended", "bury", "buries", "buried", "weighs", "goes deaf"),
    *("is asked again", "are asked again", "put off", "puts off", "has it undone", "so many"),
)
_DIALECT = re.compile(r"\b(" + "|".join(words.replace(" ", r"\s+") for words in DIALECT) + r")\b", re.IGNORECASE)
_ACCOUNT = re.compile(r"(`+)[^`\n]*\bnobody\b[^`\n]*\1|(['\"])nobody\2")
_COMMENT = re.compile(r"^.*?--\s?(.*)$")

Text = tuple[int, str]
"""A text and the line of the file on which it begins."""


def findings(line: int, text: str) -> Iterator[tuple[int, str]]:
    """Find words of the dialect, also across a line break.

    The Unix account `nobody` in code font or quotes is allowed.
    """
    plain = _ACCOUNT.sub(lambda found: " " * len(found[0]), text)
    for found in _DIALECT.finditer(plain):
        yield line + plain.count("\n", 0, found.start()), " ".join(found[0].split())


def docstrings(tree: ast.Module) -> Iterator[Text]:
    """Yield every string that is a statement of its own: docstrings, and descriptions below attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def comments(source: str) -> Iterator[Text]:
    """Yield the comments on adjacent lines as one text."""
    tokens = [
        token for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.type == tokenize.COMMENT
    ]
    begin, lines = 0, [""][:0]
    for token in tokens:
        if lines and token.start[0] != begin + len(lines):
            yield begin, "\n".join(lines)
            lines = []
        begin = begin if lines else token.start[0]
        lines.append(token.string.lstrip("# "))
    yield begin, "\n".join(lines)


def messages(tree: ast.Module) -> Iterator[Text]:
    """Yield every string literal that has more than one word: log and error messages, help texts, pages."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
            yield node.lineno, node.value


def names_of_tests(tree: ast.Module) -> Iterator[Text]:
    """Yield the name of every test, with spaces for underscores."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield node.lineno, node.name.replace("_", " ")


def comments_of_sql(text: str) -> Iterator[Text]:
    """Yield the comments of an SQL file. Other lines separate them."""
    found = (_COMMENT.match(line) for line in text.splitlines())
    yield 1, "\n".join(comment[1] if comment else ";" for comment in found)


def loops_over_one(tree: ast.Module) -> Iterator[int]:
    """Yield the line of every loop and comprehension whose variable is called `one`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
            names = {name.id for name in ast.walk(node.target) if isinstance(name, ast.Name)}
            if "one" in names:
                yield node.target.lineno


def texts(path: Path) -> Iterator[Text]:
    """Yield every text of a file that is meant for readers."""
    content = path.read_text(encoding="utf-8")
    if path.suffix == ".sql":
        yield from comments_of_sql(content)
    elif path.suffix == ".py":
        tree = ast.parse(content)
        yield from comments(content)
        yield from docstrings(tree) if path not in SOURCE else messages(tree)
        yield from names_of_tests(tree)
    else:
        yield 1, content


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def listed(paths: list[Path]) -> list[str]:
    """Return every word of the dialect in these files, in the form file:line: words."""
    return sorted(
        {
            f"{_name(path)}:{line}: {words}"
            for path in paths
            for begin, text in texts(path)
            for line, words in findings(begin, text)
        }
    )


@pytest.mark.parametrize(
    "paths", [SOURCE, TESTS, SQL, PAGES, OTHERS], ids=["source", "tests", "sql", "pages", "other files"]
)
def test_no_text_has_a_word_of_the_dialect(paths: list[Path]) -> None:
    assert paths
    assert listed(paths) == []


def test_a_loop_variable_says_what_it_holds() -> None:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in (*SOURCE, *TESTS)}
    assert [f"{_name(path)}:{line}" for path, tree in trees.items() for line in sorted(loops_over_one(tree))] == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The relay retries.", []),
        ("Whoever\nis left", [(7, "Whoever")]),
        ("kept for\n  ever, so\nmany", [(7, "for ever"), (8, "so many")]),
        ("as `nobody`, by `su nobody`, by 'nobody'", []),
        ("nobody of ours", [(7, "nobody")]),
        ("orders are put\noff", [(7, "put off")]),
    ],
)
def test_words_are_found_with_their_line(text: str, found: list[Text]) -> None:
    assert list(findings(7, text)) == found


def test_every_kind_of_text_in_a_module_is_read() -> None:
    source = '''"""Nobody knows."""
# kept for
# ever
def test_it_goes_deaf():
    raise ValueError(f"the relay {1} puts off the rest")
for one, other in []: ...
'''
    tree = ast.parse(source)
    kinds = (docstrings(tree), comments(source), names_of_tests(tree), messages(tree))
    found = [[words for text in kind for _, words in findings(*text)] for kind in kinds]
    assert found == [["Nobody"], ["for ever"], ["goes deaf"], ["Nobody", "puts off"]]
    assert list(loops_over_one(tree)) == [6]
    assert [list(findings(*text)) for text in comments_of_sql("SELECT 'nobody';\n-- so\n-- many\n")] == [
        [(2, "so many")]
    ]
