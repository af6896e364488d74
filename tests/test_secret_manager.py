import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import google_crc32c
import grpc
import pytest
from emulators import Relay, SecretManagerServer
from google.cloud.secretmanager_v1.services.secret_manager_service import SecretManagerServiceClient
from google.cloud.secretmanager_v1.services.secret_manager_service.transports import SecretManagerServiceGrpcTransport
from google.cloud.secretmanager_v1.types import AccessSecretVersionRequest, AccessSecretVersionResponse, SecretPayload
from modelarts_cleanup.adapters.secret_manager import SecretManager
from modelarts_cleanup.adapters.secrets import Secret
from modelarts_cleanup.model import RetryLater
from served import free_port

NAME = "projects/p1/secrets/modelarts/versions/latest"
KEYS = b'{"access_key": "AK", "secret_key": "hunter2"}'


def a_payload(data: bytes = KEYS, *, checksum: int | None = None) -> AccessSecretVersionResponse:
    return AccessSecretVersionResponse(name=NAME, payload=SecretPayload(data=data, data_crc32c=checksum))


def a_server(*answers: AccessSecretVersionResponse | grpc.StatusCode) -> SecretManagerServer:
    """Serve answers one after the other, the last one again and again."""
    left = list(answers)

    def answer(_request: AccessSecretVersionRequest, context: grpc.ServicerContext) -> AccessSecretVersionResponse:
        given = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(given, grpc.StatusCode):
            context.abort(given, "as planned: the secret is hunter2")
        return given

    return SecretManagerServer(answer)


def a_client(port: int) -> Callable[[], SecretManagerServiceClient]:
    def client() -> SecretManagerServiceClient:
        channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        return SecretManagerServiceClient(transport=SecretManagerServiceGrpcTransport(channel=channel))

    return client


def complaint(server: SecretManagerServer, **more: float) -> str:
    with pytest.raises(OSError, match=r".") as raised:
        SecretManager(NAME, client=a_client(server.port), **more).fetch()
    assert "hunter2" not in str(raised.value)
    return str(raised.value)


def test_a_secret_is_read_by_its_full_name() -> None:
    with a_server(a_payload(checksum=google_crc32c.value(KEYS))) as server:
        assert SecretManager(NAME, client=a_client(server.port)).fetch() == KEYS
        assert server.asked == [NAME]


def test_a_payload_without_a_checksum_is_accepted() -> None:
    with a_server(a_payload()) as server:
        assert SecretManager(NAME, client=a_client(server.port)).fetch() == KEYS


def test_an_empty_payload_is_handed_over_for_its_reader_to_refuse() -> None:
    with a_server(a_payload(b"", checksum=0)) as server:
        assert SecretManager(NAME, client=a_client(server.port)).fetch() == b""


def test_a_payload_that_arrives_damaged_once_is_read_again() -> None:
    with a_server(a_payload(checksum=1), a_payload(checksum=google_crc32c.value(KEYS))) as server:
        assert SecretManager(NAME, client=a_client(server.port)).fetch() == KEYS
        assert len(server.asked) == 2


def test_a_payload_that_arrives_damaged_twice_is_refused() -> None:
    with a_server(a_payload(checksum=1)) as server:
        assert complaint(server) == "arrived damaged 2 times: its checksum is another"
        assert len(server.asked) == 2


def test_a_checksum_of_zero_is_a_checksum() -> None:
    with a_server(a_payload(checksum=0)) as server:
        assert complaint(server).startswith("arrived damaged")


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (grpc.StatusCode.NOT_FOUND, "does not exist"),
        (grpc.StatusCode.FAILED_PRECONDITION, "is disabled or destroyed"),
        (
            grpc.StatusCode.PERMISSION_DENIED,
            "may not be read by this identity (secretmanager.versions.access is missing)",
        ),
        (grpc.StatusCode.UNAUTHENTICATED, "cannot be read: Google does not accept this identity"),
        (grpc.StatusCode.INVALID_ARGUMENT, "has a name that Secret Manager does not accept"),
        (grpc.StatusCode.DATA_LOSS, "cannot be read: DataLoss"),
    ],
)
def test_an_error_is_told_in_our_own_words_and_not_repeated(code: grpc.StatusCode, says: str) -> None:
    with a_server(code) as server:
        assert complaint(server) == says
        assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (grpc.StatusCode.UNAVAILABLE, "cannot be reached"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "cannot be read now: the quota of Secret Manager is used up"),
    ],
)
def test_a_passing_error_is_met_by_asking_again_until_the_time_is_up(code: grpc.StatusCode, says: str) -> None:
    with a_server(code) as server:
        assert complaint(server, seconds=1.0) == says
        assert len(server.asked) > 1


def test_an_error_that_passes_is_not_noticed() -> None:
    with a_server(grpc.StatusCode.UNAVAILABLE, a_payload()) as server:
        assert SecretManager(NAME, client=a_client(server.port)).fetch() == KEYS


def test_an_api_that_is_not_enabled_is_told_from_a_missing_right() -> None:
    with Relay("127.0.0.1:9") as relay:
        relay.plan("AccessSecretVersion", grpc.StatusCode.PERMISSION_DENIED, reason="SERVICE_DISABLED")
        secret = SecretManager(NAME, client=a_client(int(relay.address.rpartition(":")[2])))
        with pytest.raises(OSError, match="the API of Secret Manager is not enabled in its project"):
            secret.fetch()


def test_a_server_that_does_not_answer_is_given_up_in_time() -> None:
    with Relay("127.0.0.1:9") as relay:
        relay.plan("AccessSecretVersion", None)
        secret = SecretManager(NAME, client=a_client(int(relay.address.rpartition(":")[2])), seconds=0.3)
        with pytest.raises(OSError, match=r"^cannot be reached in time$"):
            secret.fetch()


def test_a_server_that_is_down_cannot_be_reached() -> None:
    with pytest.raises(OSError, match=r"^cannot be reached$"):
        SecretManager(NAME, client=a_client(free_port()), seconds=0.5).fetch()


def test_a_process_without_a_google_identity_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "hunter2.json"))
    with pytest.raises(
        OSError, match=r"^cannot be read: this process has no Google identity \(DefaultCredentialsError\)$"
    ):
        SecretManager(NAME).fetch()


def test_a_complaint_begins_with_the_name_of_the_secret() -> None:
    with a_server(grpc.StatusCode.FAILED_PRECONDITION) as server:
        secret = Secret(NAME, fetch=SecretManager(NAME, client=a_client(server.port)).fetch, read=bytes)
        with pytest.raises(RetryLater) as raised:
            secret.get()
    assert raised.value.reason == "credentials_unavailable"
    assert raised.value.detail == f"the secret {NAME} is disabled or destroyed"


def test_many_threads_share_one_client() -> None:
    made: list[SecretManagerServiceClient] = []
    barrier = threading.Barrier(8)
    with a_server(a_payload()) as server:

        def client() -> SecretManagerServiceClient:
            made.append(a_client(server.port)())
            return made[-1]

        secret = SecretManager(NAME, client=client)

        def fetch(_number: int) -> bytes:
            barrier.wait()
            return secret.fetch()

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(fetch, range(8))) == {KEYS}
    assert len(made) == 1
