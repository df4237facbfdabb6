"""The contestants of `make bench`: what they install is pinned, and each says how it differs from OrderStream."""

import json
import re
from pathlib import Path

import pytest

from tests.load.bench import contestants, peers
from tests.load.bench.peers import venv

PEERS = Path(peers.__file__).parent
REQUIREMENTS = sorted(PEERS.glob("*/requirements.txt"))
LOCKS = sorted(PEERS.glob("*/package-lock.json"))
NAMES = [name for name in contestants.PEERS if (PEERS / name / "contestant.py").exists()]
_PINNED = re.compile(r"[a-z0-9._-]+==[^ ;]+( ; [^\\]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+\n", re.IGNORECASE)


def _name(path: Path) -> str:
    return path.relative_to(PEERS).as_posix()


def test_contestants_are_found() -> None:
    """The other tests take their cases from these files."""
    assert {"restate", "dbos"} <= {path.parent.name for path in REQUIREMENTS}
    assert LOCKS != []


@pytest.mark.parametrize("path", REQUIREMENTS, ids=_name)
def test_every_requirement_is_pinned_with_its_hashes_and_nothing_else_is_in_the_file(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert _PINNED.sub("", text) == ""
    assert _PINNED.search(text)


@pytest.mark.parametrize("path", LOCKS, ids=_name)
def test_a_lock_has_checksums_and_no_addresses(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "://" not in text
    installed = {name: package for name, package in json.loads(text)["packages"].items() if name}
    assert installed
    assert [name for name, package in installed.items() if not package["integrity"].startswith("sha512-")] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_contestant_says_in_one_paragraph_what_it_does_more_and_less_than_orderstream(name: str) -> None:
    about = contestants.contestant(name).about
    assert "\n" not in about
    assert "more" in about
    assert "less" in about


def test_a_quick_run_needs_minutes_for_temporal_until_these_versions_are_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(venv, "checkout", lambda: tmp_path)
    assert [name for name in contestants.PEERS if contestants.needs_minutes_to_install(name)] == ["temporal"]
    pinned = (PEERS / "temporal" / "requirements.txt", PEERS / "temporal" / "server.json")
    folder = tmp_path / ".orderstream" / "bench" / "peers" / "temporal"
    folder.mkdir(parents=True)
    (folder / ".complete").write_text("an earlier version", encoding="ascii")
    assert contestants.needs_minutes_to_install("temporal")
    (folder / ".complete").write_text(venv._wanted(pinned), encoding="ascii")
    assert not contestants.needs_minutes_to_install("temporal")
