"""Reads the URLs that say where something is: a secret, a sink, the ledger, ModelArts itself."""

import re
from ipaddress import ip_address
from typing import TypeAlias
from urllib.parse import SplitResult, unquote, urlsplit

import msgspec

ENDPOINT_DOMAINS = (".myhuaweicloud.com", ".myhuaweicloud.cn", ".myhuaweicloud.eu")

_GOOGLE_PROJECT = r"(?:[a-z0-9.-]+:)?[a-z0-9-]{1,63}"
_SECRET = re.compile(
    rf"projects/({_GOOGLE_PROJECT})/secrets/([A-Za-z0-9_-]{{1,255}})(?:/versions/([A-Za-z0-9_-]{{1,63}}))?",
)
_TOPIC = re.compile(rf"projects/({_GOOGLE_PROJECT})/topics/([A-Za-z][A-Za-z0-9._~+%-]{{2,254}})")
_DATABASE = re.compile(rf"projects/({_GOOGLE_PROJECT})/databases/(\(default\)|[a-z0-9-]{{1,63}})")
_HOST = re.compile(r"[a-z0-9-]+(?:\.[a-z0-9-]+)+")
_VISIBLE = re.compile(r"[!-~]+")
_SHORTEST_PATH = 2


class FilePlace(msgspec.Struct, frozen=True):
    """`file:///path`."""

    path: str


class HttpPlace(msgspec.Struct, frozen=True):
    """`https://…`, or `http://` to a loopback address."""

    url: str


class TopicPlace(msgspec.Struct, frozen=True):
    """`pubsub://projects/P/topics/T`; `name` is what follows the scheme."""

    name: str


class SecretPlace(msgspec.Struct, frozen=True):
    """`secretmanager://projects/P/secrets/S[/versions/V]`; `name` includes the version."""

    name: str


class SqlitePlace(msgspec.Struct, frozen=True):
    """`sqlite:///path`."""

    path: str


class FirestorePlace(msgspec.Struct, frozen=True):
    """`firestore://projects/P/databases/D`."""

    project: str
    database: str


SecretUrl: TypeAlias = FilePlace | SecretPlace
SinkUrl: TypeAlias = FilePlace | HttpPlace | TopicPlace
LedgerUrl: TypeAlias = SqlitePlace | FirestorePlace


def endpoint(text: str) -> str:
    """Read the address of ModelArts. Raises `ValueError`, as each function here, with words that quote nothing."""
    url = _url(text)
    if url.path not in ("", "/") or url.query:
        raise ValueError("is more than a scheme and a host")
    port = f":{url.port}" if url.port else ""
    if url.scheme == "http" and _is_loopback(url):
        return f"http://{_host(url)}{port}"
    domain = next((domain for domain in ENDPOINT_DOMAINS if _host(url).endswith(domain)), None)
    if url.scheme != "https" or domain is None or url.port not in (None, 443) or not _HOST.fullmatch(_host(url)):
        raise ValueError(f"is not https under {', '.join(ENDPOINT_DOMAINS)}, nor http to a loopback address")
    return f"https://{_host(url)}"


def secret(text: str) -> SecretUrl:
    """Read where a secret stands."""
    scheme, rest = _scheme(text)
    if scheme == "file":
        return FilePlace(_path(text))
    if scheme == "secretmanager" and (found := _SECRET.fullmatch(rest)):
        return SecretPlace(rest if found[3] else f"{rest}/versions/latest")
    raise ValueError("is neither file:///path nor secretmanager://projects/P/secrets/S[/versions/V]")


def sink(text: str) -> SinkUrl:
    """Read where events go."""
    scheme, rest = _scheme(text)
    if scheme == "file":
        return FilePlace(_path(text))
    if scheme == "pubsub" and _TOPIC.fullmatch(rest):
        return TopicPlace(rest)
    if scheme in ("http", "https"):
        url = _url(text)
        if scheme == "https" or _is_loopback(url):
            return HttpPlace(text)
    raise ValueError("is neither pubsub://projects/P/topics/T, https://…, nor file:///path (http to loopback only)")


def ledger(text: str) -> LedgerUrl:
    """Read where the ledger is."""
    scheme, rest = _scheme(text)
    if scheme == "sqlite":
        return SqlitePlace(_path(text))
    if scheme == "firestore" and (found := _DATABASE.fullmatch(rest)):
        return FirestorePlace(found[1], found[2])
    raise ValueError("is neither firestore://projects/P/databases/D nor sqlite:///path")


def _scheme(text: str) -> tuple[str, str]:
    scheme, _, rest = text.partition("://")
    return scheme, rest


def _path(text: str) -> str:
    url = _url(text, with_host=False)
    path = unquote(url.path)
    if url.netloc or url.query or len(path) < _SHORTEST_PATH or path.endswith("/") or "\0" in path:
        raise ValueError("is not an absolute path to a file, like file:///path")
    return path


def _url(text: str, *, with_host: bool = True) -> SplitResult:
    # What urlsplit would drop or leave open is refused instead: white space, a user, a fragment.
    if not _VISIBLE.fullmatch(text):
        raise ValueError("has white space or characters that no URL has")
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        raise ValueError("is not a URL") from None
    # Pythons differ in what they take behind a bracket; nothing may stand there but a port.
    exact = _host(url) + (f":{port}" if port else "")
    if with_host and url.netloc.rpartition("@")[2].lower() != exact:
        raise ValueError("is not a URL with a plain host and port")
    if url.username is not None or url.password is not None or url.fragment or (with_host and not url.hostname):
        raise ValueError("is not a URL with a host and without user and fragment")
    return url


def _host(url: SplitResult) -> str:
    host = url.hostname or ""
    return f"[{host}]" if ":" in host else host


def _is_loopback(url: SplitResult) -> bool:
    try:
        return url.hostname == "localhost" or ip_address(url.hostname or "").is_loopback
    except ValueError:
        return False
