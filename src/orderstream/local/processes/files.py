"""Files that hold passwords or orders: only their owner can read them, under every umask."""

import contextlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700
_OTHERS = 0o077


def open_private(path: Path, mode: str) -> IO[Any]:
    """Open `path` as `open` does. A new file gets mode 0600."""
    return open(path, mode, opener=lambda name, flags: os.open(name, flags, PRIVATE_FILE))


def write_private(path: Path, content: bytes) -> None:
    """Replace `path` by a file of mode 0600 in one move, so that a reader sees either the old or the new content."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    with open_private(fresh, "xb") as file:
        file.write(content)
    fresh.replace(path)


def make_private(folder: Path) -> None:
    """Create `folder` with mode 0700 if it is missing. Missing parent folders get the mode of the umask."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)


def close_to_others(paths: Iterable[Path]) -> None:
    """Remove all rights of the group and of others from `paths` and from everything below them.

    A path that does not exist, or that belongs to another account, is skipped. Links are not followed.
    """
    for path in paths:
        _close(path)
        if path.is_dir() and not path.is_symlink():
            for folder, folders, files in os.walk(path):
                for name in (*folders, *files):
                    _close(Path(folder, name))


def _close(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError, PermissionError):
        found = path.lstat()
        if not stat.S_ISLNK(found.st_mode) and found.st_mode & _OTHERS:
            path.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS)


def open_to_all(root: Path) -> None:
    """Let every account read `root` and everything below it, and run the files that their owner may run."""
    root.chmod(0o755)
    for folder, folders, files in os.walk(root):
        for name in folders:
            _open(Path(folder, name), 0o755)
        for name in files:
            path = Path(folder, name)
            _open(path, 0o755 if path.lstat().st_mode & stat.S_IXUSR else 0o644)


def _open(path: Path, mode: int) -> None:
    if not path.is_symlink():
        path.chmod(mode)
