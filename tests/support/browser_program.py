"""Finds the browser of this machine. Playwright's own browsers are not in the package registries.

If there is none, the browser tests are skipped, and the end of the run says so. If ORDERSTREAM_NEEDS_BROWSER is set, as
in CI, they fail.
"""

import os
import shutil

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
REQUIRED = "ORDERSTREAM_NEEDS_BROWSER"
NO_BROWSER = f"no browser: none of {', '.join(PROGRAMS)} is installed"
HOW_TO_GET_ONE = "Install one: apt-get install chromium"


def program() -> str:
    """Return the path of a browser. Without one, skip the test, or fail it if a browser is required."""
    for name in PROGRAMS:
        if found := shutil.which(name):
            return found
    if os.environ.get(REQUIRED):
        pytest.fail(f"{NO_BROWSER}. {HOW_TO_GET_ONE}")
    pytest.skip(NO_BROWSER)
