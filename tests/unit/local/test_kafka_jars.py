"""Only jars with the sha256 of the lock are installed, and no jar is fetched twice."""

import hashlib
import threading
from pathlib import Path
from typing import Any

import pytest

from orderstream.local.processes.child import StoppingError
from orderstream.local.servers import kafka_jars as jars
from orderstream.local.servers.kafka_jars import FetchError, Jar

CONTENTS = {"one": b"first jar", "two": b"second jar", "three": b"third jar"}
LOCK = [Jar("group", name, "1", "jar", hashlib.sha256(content).hexdigest()) for name, content in CONTENTS.items()]


class Source:
    """Replaces jgo: returns the contents, and records the fetched names."""

    def __init__(self, contents: dict[str, bytes], gate: threading.Event | None = None) -> None:
        self.contents = contents
        self.fetched: list[str] = []
        self.gate = gate

    def context(self, staging: Path) -> Any:
        source = self

        class Artifact:
            def __init__(self, name: str) -> None:
                self.name = name

            def at_version(self, _version: str) -> "Artifact":
                return self

            def artifact(self, _classifier: str, _packaging: str) -> "Artifact":
                return self

            def resolve(self) -> Path:
                if source.gate:
                    source.gate.wait(60)
                source.fetched.append(self.name)
                if self.name not in source.contents:
                    raise RuntimeError("not found in remote repositories")
                path = staging / self.name
                path.write_bytes(source.contents[self.name])
                return path

        class Context:
            def project(self, _group: str, artifact: str) -> Artifact:
                return Artifact(artifact)

        return Context()


def use(monkeypatch: pytest.MonkeyPatch, source: Source) -> Source:
    """Make the module use the small lock and this source."""
    monkeypatch.setattr(jars, "locked", lambda: LOCK)
    monkeypatch.setattr(jars, "_context", source.context)
    return source


def install(folder: Path, cancelled: threading.Event | None = None) -> list[Path]:
    """Install the jars, and drop the progress messages."""
    return jars.install(folder, lambda _: None, cancelled or threading.Event())


def test_the_lock_names_every_jar_with_a_sha256_and_no_address() -> None:
    locked = jars.locked()
    assert len(locked) == 46
    assert all(len(jar.sha256) == 64 for jar in locked)
    assert {"kafka_2.13", "slf4j-simple"} <= {jar.artifact_id for jar in locked}
    assert "://" not in Path(jars.__file__).with_name("kafka.lock.toml").read_text()


def test_all_jars_are_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = use(monkeypatch, Source(CONTENTS))
    paths = install(tmp_path)
    assert [path.read_bytes() for path in paths] == list(CONTENTS.values())
    assert install(tmp_path) == paths
    assert sorted(source.fetched) == sorted(CONTENTS)


def test_only_a_damaged_jar_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = use(monkeypatch, Source(CONTENTS))
    paths = install(tmp_path)
    paths[1].write_bytes(b"second j")
    source.fetched.clear()
    install(tmp_path)
    assert source.fetched == ["two"]
    assert paths[1].read_bytes() == b"second jar"


def test_a_jar_with_another_sha256_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Source({**CONTENTS, "two": b"something else"}))
    with pytest.raises(FetchError, match=r"group:two:1.*sha256"):
        install(tmp_path)
    assert not (tmp_path / LOCK[1].file_name).exists()


def test_a_jar_that_cannot_be_fetched_is_named_and_the_others_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = use(monkeypatch, Source({name: CONTENTS[name] for name in ("one", "three")}))
    with pytest.raises(FetchError, match=r"group:two:1.*not found"):
        install(tmp_path)
    source.contents = CONTENTS
    assert len(install(tmp_path)) == 3


def test_a_stop_does_not_wait_for_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, cancelled = threading.Event(), threading.Event()
    use(monkeypatch, Source(CONTENTS, gate))
    cancelled.set()
    with pytest.raises(StoppingError):
        install(tmp_path, cancelled)
    gate.set()
