"""The banner has all addresses, no passwords, and the example order of the README."""

import json
import subprocess

from orderstream.local.banner import banner, curl_lines, exports
from orderstream.local.processes.state import StateDir

URLS = {
    "POSTGRES_URL": "postgresql://app@127.0.0.1:1/orders",
    "REDIS_URL": "redis://127.0.0.1:2/0",
    "KAFKA_BROKERS": "it's.example:3,127.0.0.1:3",
    "BASE_URL": "http://127.0.0.1:3000",
}
# Replaces curl. A POST answers as the API does, and a GET prints its arguments.
CURL = """curl() {
  case "$*" in
    *POST*) printf '%s' "$*" > body; printf '{"orderId": "an-id"}' ;;
    *) echo "read $*" ;;
  esac
}
"""


def test_the_curl_lines_create_the_example_order_and_read_it_back(state: StateDir) -> None:
    done = subprocess.run(
        ["sh", "-c", CURL + curl_lines(URLS["BASE_URL"])], cwd=state.root, capture_output=True, text=True, check=True
    )
    assert done.stdout == '{"orderId": "an-id"}\nread -s --noproxy * http://127.0.0.1:3000/orders/an-id\n\n'
    sent = (state.root / "body").read_text().partition("-d ")[2]
    assert json.loads(sent) == {
        "userId": "u-1",
        "items": [{"sku": "SKU-1", "qty": 1, "price": 129.0}],
        "amount": 129.0,
        "currency": "USD",
    }


def test_the_banner_has_all_addresses_and_directories(state: StateDir) -> None:
    text = banner(URLS, state)
    assert all(value in text for value in [*URLS.values(), str(state.root), str(state.logs), "/docs"])


def test_the_banner_has_the_address_of_the_payment_simulator_if_it_runs(state: StateDir) -> None:
    url = "http://127.0.0.1:4"
    assert url in banner({**URLS, "PAYMENT_SIMULATOR_URL": url}, state)
    assert "Payments" not in banner(URLS, state)


def test_the_banner_masks_passwords_and_says_how_to_get_them(state: StateDir) -> None:
    secret = {
        "POSTGRES_URL": "host=db user=app password='p ss\\'w' dbname=orders",
        "REDIS_URL": "rediss://cache:p@ss:w/rd@cache.example:6379/0?password=pssw",
        "KAFKA_OPTIONS": '{"sasl.password": "pssw"}',
    }
    text = banner({**URLS, **secret}, state)
    assert not [word for word in ("p ss", "'w", "p@ss", "w/rd", "pssw") if word in text]
    assert "host=db user=app password=*** dbname=orders" in text
    assert "rediss://cache:***@cache.example:6379/0?password=***" in text
    assert 'eval "$(orderstream env)"' in text


def test_the_banner_has_the_curl_lines(state: StateDir) -> None:
    text = banner(URLS, state)
    assert curl_lines(URLS["BASE_URL"]) in text


def test_exports_can_be_evaluated() -> None:
    script = exports(URLS) + '\nprintf "%s %s" "$POSTGRES_URL" "$KAFKA_BROKERS"'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == f"{URLS['POSTGRES_URL']} {URLS['KAFKA_BROKERS']}"


def test_the_banner_of_the_demo_says_what_to_look_at(state: StateDir) -> None:
    text = banner(URLS, state, play_rate=3)
    assert "places 3 orders a second" in text
    assert f"export ORDERSTREAM_STATE={state.root}" in text
    assert "demo" not in banner(URLS, state).replace(str(state.root), "")
