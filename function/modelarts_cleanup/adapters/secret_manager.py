"""
Reads one version of a secret from Google Secret Manager, and checks that it arrived undamaged.

The call: https://cloud.google.com/secret-manager/docs/reference/rpc/google.cloud.secretmanager.v1. What Google's
errors mean stands in one table, and nothing of an error's own text is passed on.
"""

import threading
from collections.abc import Callable

import google_crc32c
from google.api_core.exceptions import GoogleAPIError
from google.api_core.retry import Retry
from google.auth.exceptions import GoogleAuthError
from google.cloud.secretmanager_v1.services.secret_manager_service import SecretManagerServiceClient

from modelarts_cleanup.adapters import google_errors

# One read, repetitions included; two reads fit well into the time of one delivery.
SECONDS = 5.0
READS = 2

# By the names of google.rpc.Code.
_WRONG = {
    # Also what a key in KMS that is switched off, or a policy of the organisation, answers.
    "FAILED_PRECONDITION": "is disabled or destroyed",
    "PERMISSION_DENIED": "may not be read by this identity (secretmanager.versions.access is missing)",
    "INVALID_ARGUMENT": "has a name that Secret Manager does not accept",
}


class SecretManager:
    """
    One version of a secret, by its full name `projects/P/secrets/S/versions/V`; safe to use from many threads.

    `client` makes the client when it is first needed; `seconds` is what one read may take.
    """

    def __init__(
        self,
        name: str,
        *,
        client: Callable[[], SecretManagerServiceClient] = SecretManagerServiceClient,
        seconds: float = SECONDS,
    ) -> None:
        self._name = name
        self._make = client
        self._seconds = seconds
        self._lock = threading.Lock()
        self._made: SecretManagerServiceClient | None = None

    def fetch(self) -> bytes:
        """
        Give the bytes of the secret.

        Raises `OSError` that says what is wrong, as the end of a sentence that begins with the secret's name.
        """
        try:
            for _ in range(READS):
                payload = self._undamaged()
                if payload is not None:
                    return payload
        except GoogleAPIError as error:
            raise OSError(_wrong(error)) from None
        except GoogleAuthError as error:
            raise OSError(f"cannot be read: this process has no Google identity ({type(error).__name__})") from None
        raise OSError(f"arrived damaged {READS} times: its checksum is another")

    def _undamaged(self) -> bytes | None:
        """Read once; None if the checksum is another. One that is absent is accepted."""
        # https://cloud.google.com/secret-manager/docs/data-integrity
        answer = self._connected().access_secret_version(
            name=self._name,
            retry=Retry(initial=0.1, maximum=1.0, timeout=self._seconds),
            timeout=self._seconds,
        )
        payload = answer.payload
        damaged = "data_crc32c" in payload and payload.data_crc32c != google_crc32c.value(payload.data)
        return None if damaged else bytes(payload.data)

    def _connected(self) -> SecretManagerServiceClient:
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made


def _wrong(error: Exception) -> str:
    return google_errors.wrong(error, api="Secret Manager", undone="cannot be read", table=_WRONG)
