"""Every SKU has a segment of a path that any client and any server leave as it is."""

import re
import subprocess
from urllib.parse import urljoin

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orderstream.console.stock.sku_keys import SkuError, shell_word, sku_key, sku_of

HOSTILE = ["/", "..", ".", "%", "%2F", "a/../b", "\n", "a b", "~", "~QQ", "ü", "?q=1", "#", "SKU-1", "<script>", "\\"]


@pytest.mark.parametrize("sku", HOSTILE)
def test_a_hostile_sku_survives_a_path(sku: str) -> None:
    key = sku_key(sku)
    assert re.fullmatch(r"~?[A-Za-z0-9_.-]+", key)
    assert urljoin("http://h/stock/x", f"/stock/{key}/set") == f"http://h/stock/{key}/set"
    assert sku_of(key) == sku


@pytest.mark.parametrize("sku", [*HOSTILE, "it's \\ \n", "\x1b[2J", "$(id) `id` !"])
def test_a_shell_passes_every_sku_on(sku: str) -> None:
    word = shell_word(sku)
    assert word.isprintable()
    done = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True)
    assert done.stdout.decode() == sku


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=64))
def test_every_sku_comes_back(sku: str) -> None:
    assert sku_of(sku_key(sku)) == sku


@pytest.mark.parametrize("key", ["", "~", "~!", "~A", "~/w", "a" * 65, "~AA", "~_w"])
def test_a_key_of_no_sku_is_refused(key: str) -> None:
    with pytest.raises(SkuError):
        sku_of(key)
