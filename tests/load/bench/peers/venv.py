"""The virtual environment of a contestant, below `.orderstream/bench/peers`, from a file that pins every hash.

The project's own environment never has the libraries of a contestant.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from orderstream.local.processes.state import checkout

INSTALL_SECONDS = 1_200.0
"""A step of an installation that takes longer is given up. The longest compiles the server of Temporal: 5 minutes."""
_COMPLETE = ".complete"


class InstallError(Exception):
    """A contestant cannot be installed. The message has the end of what the installer said."""


def install(name: str, pinned: Sequence[Path], more: Callable[[Path], None] | None = None) -> Path:
    """Return the virtual environment of the contestant `name`, and create it if it is missing or has other versions.

    The first file of `pinned` is the requirements file. `more` installs what else belongs to it, in the folder of the
    environment. The other files of `pinned` say what that is. An environment that is complete needs no network. One
    that is not complete is removed and created again. Raises InstallError.
    """
    folder = _folder(name)
    if is_installed(name, pinned):
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    uv = Path(sys.executable).with_name("uv")
    run([uv, "venv", "--quiet", "--python", sys.executable, folder])
    options = ["--quiet", "--system-certs", "--compile-bytecode", "--require-hashes"]
    run([uv, "pip", "install", *options, "--python", program(folder), "-r", pinned[0]])
    if more is not None:
        more(folder)
    (folder / _COMPLETE).write_text(_wanted(pinned), encoding="ascii")
    return folder


def is_installed(name: str, pinned: Sequence[Path]) -> bool:
    """Return whether the environment of the contestant `name` is complete and has these versions."""
    complete = _folder(name) / _COMPLETE
    return complete.is_file() and complete.read_text(encoding="ascii") == _wanted(pinned)


def _folder(name: str) -> Path:
    return checkout() / ".orderstream" / "bench" / "peers" / name


def _wanted(pinned: Sequence[Path]) -> str:
    """Return a text that changes with the versions of Python and of what is installed."""
    content = b"\0".join([sys.version.encode(), *(path.read_bytes() for path in pinned)])
    return hashlib.sha256(content).hexdigest()


def program(folder: Path, name: str = "python") -> Path:
    """Return the path of a program of the environment `folder`."""
    return folder / "bin" / name


def run(argv: Sequence[str | Path], cwd: Path | None = None, env: Mapping[str, str] = MappingProxyType({})) -> None:
    """Run a command of an installation to its end, with `env` added to the environment.

    Raises InstallError if it fails or takes too long.
    """
    command = [str(word) for word in argv]
    try:
        subprocess.run(
            command,
            check=True,
            cwd=cwd,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=INSTALL_SECONDS,
        )
    except subprocess.CalledProcessError as error:
        raise InstallError(f"{' '.join(command)} exited with {error.returncode}:\n{error.output[-2_000:]}") from error
    except subprocess.TimeoutExpired as error:
        raise InstallError(f"{' '.join(command)} took longer than {INSTALL_SECONDS:.0f} s") from error
