"""The text that `up` prints when everything serves: the addresses, and an example order to paste."""

import shlex
from collections.abc import Mapping
from urllib.parse import quote

from orderstream.local.processes.masking import masked
from orderstream.local.processes.state import StateDir
from orderstream.local.servers import server_home

# The same example order as in the README. A test compares the two.
_EXAMPLE = """\
# Create an order
order=$(curl -s --noproxy '*' -X POST {base_url}/orders \\
  -H 'content-type: application/json' \\
  -d '{{"userId":"u-1","items":[{{"sku":"SKU-1","qty":1,"price":129.0}}],
       "amount":129.0,"currency":"USD"}}'); echo "$order"

# Read it back
curl -s --noproxy '*' {base_url}/orders/$(echo "$order" | cut -d '"' -f 4); echo"""


def curl_lines(base_url: str) -> str:
    """Return shell lines that create an order and read it back."""
    return _EXAMPLE.format(base_url=base_url)


_DEMO = """
This is the demo: it places {rate:g} orders a second and pays at a bank that can fail. Open the console and look at:

  Overview    the saga at work: what happens now, and what is wrong
  Orders      open an order: every decision and event on one time axis
  Play        how the orders ended. Break something with one click
  Promises    run the audit: no order was lost or charged twice

docs/demo.md leads you through it in five minutes. In another shell, name the state of the demo before a command:
  export ORDERSTREAM_STATE={state}
"""


def banner(urls: Mapping[str, str], state: StateDir, token: str | None = None, play_rate: float = 0) -> str:
    """Return the whole banner. `urls` are the variables that `exports` prints, `token` is the operator's token.

    `play_rate` is PLAY_RATE. With it, the banner says what to look at.
    """
    base_url, simulator = urls["BASE_URL"], urls.get("PAYMENT_SIMULATOR_URL")
    console = urls.get("CONSOLE_URL")
    if console is not None and token is not None:
        console = f"{console}/enter?token={quote(token, safe='')}"
    rows = {
        "API": f"{base_url}  (docs: {base_url}/docs)",
        **({"Console": console} if console else {}),
        "PostgreSQL": masked(urls["POSTGRES_URL"]),
        "Valkey": masked(urls["REDIS_URL"]),
        "Kafka": urls["KAFKA_BROKERS"],
        **({"Payments": simulator + "  (the payment simulator: docs/payment-simulator.md)"} if simulator else {}),
        "Passwords": 'eval "$(orderstream env)" sets them for your shell, as POSTGRES_URL, REDIS_URL, KAFKA_OPTIONS',
        "Logs": f"{state.logs}  (or: orderstream logs -f)",
        "State": f"{_directories(state)}  (orderstream reset removes it)",
    }
    table = "\n".join(f"  {name:<11} {value}" for name, value in rows.items())
    first = "OrderStream is up. To stop it: Ctrl-C here, or `orderstream down` anywhere."
    demo = _DEMO.format(rate=play_rate, state=shlex.quote(str(state.root))) if play_rate else ""
    return f"\n{first}\n\n{table}\n{demo}\n{curl_lines(base_url)}\n"


def _directories(state: StateDir) -> str:
    """Return the directories that hold the state. The servers of root have their data in a second one."""
    shared = server_home.of(state).shared
    return str(state.root) if shared is None or not shared.exists() else f"{state.root} and {shared}"


def exports(urls: Mapping[str, str]) -> str:
    """Return shell lines that export each variable, for `eval`."""
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in urls.items())
