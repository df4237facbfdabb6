"""The token with which services send spans to the console. It is derived from the operator's token (HMAC).

A service never holds the operator's token. The token for spans permits nothing but `POST /v1/traces`.
"""

import hashlib
import hmac
from urllib.parse import quote


def ingest_token(operator_token: str) -> str:
    """Return the token that services send with their spans."""
    return hmac.new(operator_token.encode(), b"orderstream spans", hashlib.sha256).hexdigest()


def exporter_headers(operator_token: str) -> str:
    """Return the value of OTEL_EXPORTER_OTLP_HEADERS with which an exporter may send spans."""
    return f"authorization={quote(f'Bearer {ingest_token(operator_token)}')}"
