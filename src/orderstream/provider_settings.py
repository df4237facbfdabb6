"""Checks of the settings of the payment provider, and the reading of the files that they name.

Each check returns the setting, or raises ValueError with a message that repeats no secret.
"""

import re
import ssl
from pathlib import Path
from urllib.parse import urlsplit

PROVIDERS = ("simulated", "http", "simulator")
API_KEY_MAX_CHARACTERS = 4_096

_FACTORY = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
_HOST = re.compile(r"(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}\.?|\[[0-9A-Fa-f:.]+\]", re.ASCII)
_PATH = re.compile(r"[A-Za-z0-9._~/-]*", re.ASCII)
_API_KEY = re.compile(rf"[!-~]{{1,{API_KEY_MAX_CHARACTERS}}}")


def provider(value: str) -> str:
    """Check the name of a provider, or the form of the path of an adapter's factory."""
    if value not in PROVIDERS and not _FACTORY.fullmatch(value):
        raise ValueError(f"must be {', '.join(PROVIDERS)}, or the path of a function, such as package.module:function")
    return value


def url(value: str) -> str:
    """Check the base URL of a provider."""
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        raise ValueError("its host or port cannot be read") from None
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError("it must begin with http:// or https://, followed by a host")
    if "@" in parts.netloc:
        raise ValueError("it must have no user or password; PAYMENT_API_KEY or PAYMENT_API_KEY_FILE has the API key")
    if "?" in value or "#" in value:
        raise ValueError("it must have no query and no fragment")
    host = parts.netloc if port is None else parts.netloc.rpartition(":")[0]
    if not _HOST.fullmatch(host) or port == 0 or not _PATH.fullmatch(parts.path):
        raise ValueError("its host, port or path is not valid")
    return value


def api_key(value: str) -> str:
    """Check that an API key can stand in a header field."""
    if not _API_KEY.fullmatch(value):
        raise ValueError(f"must have 1 to {API_KEY_MAX_CHARACTERS} visible ASCII characters and no space")
    return value


def api_key_file(path: str) -> str:
    """Check that the file has an API key in one line."""
    read_api_key(path)
    return path


def read_api_key(path: str) -> str:
    """Return the API key in a file. Raises ValueError if the file has none, or more than one line."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(API_KEY_MAX_CHARACTERS + 3)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    line = content.removesuffix(b"\n").removesuffix(b"\r")
    if not _API_KEY.fullmatch(line.decode("latin-1")):
        raise ValueError(
            f"the file must have one line of 1 to {API_KEY_MAX_CHARACTERS} visible ASCII characters and no space"
        )
    return line.decode()


def readable_file(path: str) -> str:
    """Check that a file exists and can be read."""
    try:
        with Path(path).open("rb") as file:
            file.read(1)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    return path


def ca_file(path: str) -> str:
    """Check that a file has certificates."""
    readable_file(path)
    try:
        tls_context(path)
    except ssl.SSLError:
        raise ValueError("the file has no valid certificate in the PEM format") from None
    return path


def check_pair(certificate: str | None, key: str | None) -> None:
    """Check that a certificate and a private key belong together, or that there is neither."""
    if (certificate is None) != (key is None):
        raise ValueError("PAYMENT_TLS_CERT_FILE and PAYMENT_TLS_KEY_FILE must be set together")
    if certificate is not None:
        try:
            tls_context(None, certificate, key)
        except ssl.SSLError as error:
            raise ValueError(f"it does not fit PAYMENT_TLS_CERT_FILE: {error.reason or 'no valid PEM file'}") from None


def tls_context(ca: str | None = None, certificate: str | None = None, key: str | None = None) -> ssl.SSLContext:
    """Return a context that verifies the provider's certificate and host name. Raises ssl.SSLError for a wrong file."""
    context = ssl.create_default_context(cafile=ca)
    context.set_alpn_protocols(["http/1.1"])
    if certificate is not None:
        context.load_cert_chain(
            certificate, key, password=""
        )  # an encrypted key is refused, not a question to the user
    return context
