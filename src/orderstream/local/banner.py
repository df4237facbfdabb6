"""What `up` prints when everything serves: where things are, and lines to paste."""

import shlex
from collections.abc import Mapping

from orderstream.local.processes.masking import masked
from orderstream.local.processes.state import StateDir
from orderstream.local.servers import server_home

# The example order of the README; a test holds the two against each other.
_EXAMPLE = """\
# Create an order
order=$(curl -s --noproxy '*' -X POST {base_url}/orders \\
  -H 'content-type: application/json' \\
  -d '{{"userId":"u-1","items":[{{"sku":"SKU-1","qty":1,"price":129.0}}],
       "amount":129.0,"currency":"USD"}}'); echo "$order"

# Read it back
curl -s --noproxy '*' {base_url}/orders/$(echo "$order" | cut -d '"' -f 4); echo"""


def curl_lines(base_url: str) -> str:
    """Shell lines that create an order and read it back."""
    return _EXAMPLE.format(base_url=base_url)


def banner(urls: Mapping[str, str], state: StateDir) -> str:
    """The whole banner; `urls` are those of `exports`."""
    base_url = urls["BASE_URL"]
    rows = {
        "API": f"{base_url}  (docs: {base_url}/docs)",
        "PostgreSQL": masked(urls["POSTGRES_URL"]),
        "Valkey": masked(urls["REDIS_URL"]),
        "Kafka": urls["KAFKA_BROKERS"],
        "Passwords": 'eval "$(orderstream env)" sets them for your shell, as POSTGRES_URL, REDIS_URL, KAFKA_OPTIONS',
        "Logs": f"{state.logs}  (or: orderstream logs -f)",
        "State": f"{_places(state)}  (orderstream reset removes it)",
    }
    table = "\n".join(f"  {name:<11} {value}" for name, value in rows.items())
    first = "OrderStream is up. To stop it: Ctrl-C here, or `orderstream down` anywhere."
    return f"\n{first}\n\n{table}\n\n{curl_lines(base_url)}\n"


def _places(state: StateDir) -> str:
    """Where the state is; root's PostgreSQL has its data elsewhere."""
    shared = server_home.of(state).shared
    return str(state.root) if shared is None or not shared.exists() else f"{state.root} and {shared}"


def exports(urls: Mapping[str, str]) -> str:
    """Lines for `eval`, one variable each."""
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in urls.items())
