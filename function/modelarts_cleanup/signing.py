"""
Turns a request and a key pair into signature headers (SDK-HMAC-SHA256), purely.

The algorithm: https://support.huaweicloud.com/intl/en-us/devg-apisign/api-sign-algorithm-002.html
"""

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from urllib.parse import quote, unquote

import msgspec

ALGORITHM = "SDK-HMAC-SHA256"


class Credentials(msgspec.Struct, frozen=True):
    """A key pair, with a security token if it is a temporary one. Its repr shows none of it."""

    access_key: str
    secret_key: str
    security_token: str | None = None

    def __repr__(self) -> str:
        """Show nothing."""
        return "Credentials(…)"


def sdk_date(at: datetime) -> str:
    """Write the moment of signing; the cloud refuses one more than 15 minutes off."""
    return at.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")


def authorization(
    method: str,
    path: str,
    *,
    query: Iterable[tuple[str, str]] = (),
    headers: Mapping[str, str],
    body: bytes = b"",
    credentials: Credentials,
) -> str:
    """
    Sign a request: the value of its `Authorization` header.

    `headers` are those that get signed, `Host` and `X-Sdk-Date` among them. Names with `_` are
    not signed, as gateways drop them.
    """
    signed = {name.lower(): value.strip() for name, value in headers.items() if "_" not in name}
    names = ";".join(sorted(signed))
    # The body's hash may be replaced by a header, which says that the body is not signed.
    digest = (body and signed.get("x-sdk-content-sha256")) or hashlib.sha256(body).hexdigest()
    canonical = "\n".join(
        (
            method,
            _canonical_path(path),
            _canonical_query(query),
            *(f"{name}:{signed[name]}" for name in sorted(signed)),
            "",
            names,
            digest,
        ),
    )
    to_sign = f"{ALGORITHM}\n{signed['x-sdk-date']}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    # One step: unlike AWS, no key is derived from date, region and service.
    signature = hmac.new(credentials.secret_key.encode(), to_sign.encode(), hashlib.sha256).hexdigest()
    return f"{ALGORITHM} Access={credentials.access_key}, SignedHeaders={names}, Signature={signature}"


def _canonical_path(path: str) -> str:
    # The cloud signs the path with a slash at its end, which the request itself does not have.
    quoted = quote(unquote(path), safe="~/")
    return quoted if quoted.endswith("/") else quoted + "/"


def _canonical_query(query: Iterable[tuple[str, str]]) -> str:
    return "&".join(f"{quote(name, safe='~')}={quote(value, safe='~')}" for name, value in sorted(query))
