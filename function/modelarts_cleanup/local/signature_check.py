"""Checks a request's signature as Huawei Cloud's gateway does, with code that knows nothing of the product's signer."""

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl, quote, unquote

ALGORITHM = "SDK-HMAC-SHA256"
MAX_SKEW = timedelta(minutes=15)

_AUTHORIZATION = re.compile(
    ALGORITHM
    + r" Access=(?P<access>[^,\s]+), ?SignedHeaders=(?P<signed>[a-z0-9;-]+), ?Signature=(?P<signature>[0-9a-f]+)"
)
_DATE = re.compile(r"[0-9]{8}T[0-9]{6}Z")
_MUST_BE_SIGNED = ("host", "x-sdk-date")
_UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPair:
    """The credentials that are accepted; temporary ones have a security token."""

    access_key: str
    secret_key: str = field(repr=False)
    security_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedRequest:
    """
    A request as it came over the wire.

    `target` is the request line's, still encoded and with its query; the names in `headers` are lower-case.
    """

    method: str
    target: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(default=b"", repr=False)


def objection_to_signature(request: SignedRequest, *, key_pair: KeyPair, now: datetime) -> str | None:
    """
    Say why the request is not one that the holder of the key pair has just signed, or None where it is.

    https://support.huaweicloud.com/intl/en-us/devg-apisign/api-sign-algorithm-002.html
    """
    claim = _AUTHORIZATION.fullmatch(request.headers.get("authorization", ""))
    if claim is None:
        return "the Authorization header is missing or cannot be read"
    signed = claim["signed"].split(";")
    for name in _MUST_BE_SIGNED:
        if name not in signed:
            return f"the header {name} is not signed"
    for name in signed:
        if name not in request.headers:
            return f"the signed header {name} is not there"
    return (
        _objection_to_date(request.headers["x-sdk-date"], now)
        or _objection_to_token(request.headers.get("x-security-token"), key_pair.security_token)
        or _objection_to_key(claim, request, key_pair)
    )


def _objection_to_date(text: str, now: datetime) -> str | None:
    try:
        signed_at = datetime.strptime(text, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC) if _DATE.fullmatch(text) else None
    except ValueError:
        signed_at = None
    if signed_at is None:
        return "X-Sdk-Date is not a time"
    if abs(now - signed_at) > MAX_SKEW:
        return "the signature has expired"
    return None


def _objection_to_token(sent: str | None, expected: str | None) -> str | None:
    if sent is None or expected is None:
        return None if sent is expected else "X-Security-Token is missing, or sent with keys that have none"
    return None if _same(sent, expected) else "X-Security-Token is another one"


def _objection_to_key(claim: re.Match[str], request: SignedRequest, key_pair: KeyPair) -> str | None:
    if not _same(claim["access"], key_pair.access_key):
        return "the access key is not known"
    expected = _signature(request, claim["signed"], key_pair.secret_key)
    return None if _same(claim["signature"], expected) else "the signature does not match"


def _same(sent: str, expected: str) -> bool:
    return hmac.compare_digest(sent.encode(), expected.encode())


def _signature(request: SignedRequest, signed: str, secret_key: str) -> str:
    digest = hashlib.sha256(_canonical(request, signed)).hexdigest()
    text = f"{ALGORITHM}\n{request.headers['x-sdk-date']}\n{digest}"
    return hmac.new(secret_key.encode(), text.encode(), hashlib.sha256).hexdigest()


def _canonical(request: SignedRequest, signed: str) -> bytes:
    path, _, query = request.target.partition("?")
    pairs = sorted(parse_qsl(query, keep_blank_values=True))
    lines = [
        request.method.upper(),
        "/".join(quote(part, safe="~") for part in unquote(path).split("/")).removesuffix("/") + "/",
        "&".join(f"{quote(name, safe='~')}={quote(value, safe='~')}" for name, value in pairs),
        *(f"{name}:{request.headers[name].strip()}" for name in signed.split(";")),
        "",
        signed,
        _payload_hash(request),
    ]
    # A header's bytes travel as Latin-1 text; everything else here is ASCII.
    return "\n".join(lines).encode("latin-1")


def _payload_hash(request: SignedRequest) -> str:
    # The vendor's signer hashes an empty body even where it calls the payload unsigned.
    if request.body and request.headers.get("x-sdk-content-sha256") == _UNSIGNED_PAYLOAD:
        return _UNSIGNED_PAYLOAD
    return hashlib.sha256(request.body).hexdigest()
