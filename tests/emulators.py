"""
Google on this machine: the Pub/Sub and Firestore emulators, once a session, and a Secret Manager of our own.

Use the fixtures with `pytest_plugins = ["emulators"]`. Every test takes a project of its own (`new_project`), so
that none sees what another has left. Nothing is asserted here: PYTEST_DONT_REWRITE, as the tests import it too.
"""

import json
import os
import shutil
import socket
import socketserver
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, Self

import google_crc32c
import grpc
import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from google.api_core.exceptions import DeadlineExceeded
from google.cloud.secretmanager_v1.types import AccessSecretVersionRequest, AccessSecretVersionResponse, SecretPayload
from google.pubsub_v1 import PublisherClient, SubscriberClient
from google.pubsub_v1.types import PubsubMessage, PullRequest, PushConfig, ReceivedMessage, Subscription
from modelarts_cleanup.adapters.ledger_firestore import FirestoreStore
from modelarts_cleanup.entries import Entries, LimitEntry
from served import free_port

# Name, the variable that may say where its jar is, and where the jar is in Google's SDK.
PUBSUB = ("pubsub", "PUBSUB_EMULATOR_JAR", "pubsub-emulator/lib/cloud-pubsub-emulator-*.jar")
FIRESTORE = ("firestore", "FIRESTORE_EMULATOR_JAR", "cloud-firestore-emulator/cloud-firestore-emulator*.jar")
FIRESTORE_MAIN = "com.google.cloud.datastore.emulator.firestore.CloudFirestore"
# Whatever ends the tests, kill -9 too, closes a pipe, and that kills the emulator.
KILLED_WITH_US = 'exec 3<&0; (cat <&3 >/dev/null; kill -9 $$ 2>/dev/null) & exec "$@" 3<&- </dev/null'


def new_project() -> str:
    """Give a project that no other test uses."""
    return f"p-{uuid.uuid4().hex[:20]}"


@pytest.fixture(scope="session")
def pubsub_emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start the Pub/Sub emulator and give its address, as `PUBSUB_EMULATOR_HOST` wants it."""
    archive = jar(*PUBSUB)
    with running(["-jar", archive], log=tmp_path_factory.mktemp("pubsub") / "log") as address:
        yield address


@pytest.fixture(scope="session")
def firestore_emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start the Firestore emulator and give its address, as `FIRESTORE_EMULATOR_HOST` wants it."""
    archive = jar(*FIRESTORE)
    with running(
        ["-cp", archive, FIRESTORE_MAIN, "start"], log=tmp_path_factory.mktemp("firestore") / "log"
    ) as address:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FIRESTORE_EMULATOR_HOST", address)
            warm_up(FirestoreStore(new_project(), "(default)", seconds=30))
        yield address


@pytest.fixture
def google_project() -> str:
    """Give the project of this test."""
    return new_project()


@pytest.fixture
def firestore_store(firestore_emulator: str, google_project: str, monkeypatch: pytest.MonkeyPatch) -> FirestoreStore:
    """Give a store of the ledger that holds nothing yet."""
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", firestore_emulator)
    return FirestoreStore(google_project, "(default)")


@pytest.fixture
def pubsub(pubsub_emulator: str, google_project: str, monkeypatch: pytest.MonkeyPatch) -> "Pubsub":
    """Give a project on Pub/Sub that holds nothing yet."""
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", pubsub_emulator)
    return Pubsub(google_project)


def jar(name: str, variable: str, pattern: str) -> str:
    """Find the archive of an emulator; skips, saying how to get it, where there is none."""
    if variable in os.environ:
        return os.environ[variable]
    for root in _sdk_roots():
        found = sorted((root / "platform").glob(pattern))
        if found:
            return str(found[-1])
    pytest.skip(
        f"the {name} emulator is not here: gcloud components install {name}-emulator (or cloud-{name}-emulator), "
        f"or apt-get install google-cloud-cli-{name}-emulator, or say in {variable} where its jar is"
    )


def _sdk_roots() -> Iterator[Path]:
    if root := os.environ.get("CLOUDSDK_ROOT_DIR"):
        yield Path(root)
    if gcloud := shutil.which("gcloud"):
        yield Path(gcloud).resolve().parent.parent
    yield Path.home() / "google-cloud-sdk"
    for place in ("/usr/lib", "/usr/lib64", "/usr/share", "/usr/local", "/usr/local/share", "/opt"):
        yield Path(place) / "google-cloud-sdk"


def _java() -> str:
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=f"{home}/bin") if home else shutil.which("java")
    if java is None:
        pytest.skip("Google's emulators need Java: apt-get install default-jre-headless, or set JAVA_HOME")
    return java


def warm_up(store: FirestoreStore) -> None:
    """Let the emulator load all its classes, which takes seconds."""

    def change(entries: Entries) -> None:
        entries["limit:a"] = LimitEntry(forget_at=datetime.now(UTC) + timedelta(days=len(seen)))
        seen.append(entries)

    seen: list[Entries] = []
    for _ in range(5):
        store.transact(["limit:a", "limit:b"], change)


@contextmanager
def running(arguments: list[str], *, log: Path) -> Iterator[str]:
    """Run an emulator, and give its address once it answers."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    # Two cores are enough for all: neither emulator gets to compile or collect on more than one.
    flags = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Duser.language=en"]
    java = [_java(), *flags, *arguments, "--host=127.0.0.1", f"--port={port}"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["/bin/sh", "-c", KILLED_WITH_US, "sh", *java],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_ready(address, process, log)
        yield address
    finally:
        # They keep nothing, so nothing is lost; asked over HTTP to shut down, they take seconds.
        process.kill()
        process.communicate(timeout=10)


def _wait_until_ready(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        with suppress(requests.RequestException):
            if requests.get(f"http://{address}/", timeout=5).status_code == 200:
                return
        time.sleep(0.05)
    raise RuntimeError(f"the emulator does not serve: {log.read_text(errors='replace')[-2000:]}")


class Pubsub:
    """One project on Pub/Sub, with what a test needs of it."""

    def __init__(self, project: str) -> None:
        self.project = project
        self._publisher = PublisherClient()
        self._subscriber = SubscriberClient()

    def topic(self, name: str) -> str:
        """Make a topic and give its full name."""
        topic = f"projects/{self.project}/topics/{name}"
        self._publisher.create_topic(name=topic, timeout=10)
        return topic

    def subscription(self, topic: str, **more: object) -> str:
        """Make a subscription and give its full name; `more` are fields of `Subscription`."""
        name = f"projects/{self.project}/subscriptions/s-{uuid.uuid4().hex[:8]}"
        self._subscriber.create_subscription(Subscription({"name": name, "topic": topic, **more}), timeout=10)
        return name

    def push_to(self, subscription: str, url: str) -> None:
        """Let a subscription push to another address from now on, unwrapped."""
        config = PushConfig(push_endpoint=url, no_wrapper=PushConfig.NoWrapper(write_metadata=True))
        self._subscriber.modify_push_config(subscription=subscription, push_config=config, timeout=10)

    def publish(self, topic: str, data: bytes, attributes: Mapping[str, str] | None = None) -> str:
        """Publish a message and give its id."""
        message = PubsubMessage(data=data, attributes=attributes or {})
        return str(self._publisher.publish(topic=topic, messages=[message], timeout=10).message_ids[0])

    def pull(self, subscription: str, count: int = 1, *, within: float = 20.0) -> list[ReceivedMessage]:
        """Pull so many messages and acknowledge them; fewer if no more come in time."""
        pulled: list[ReceivedMessage] = []
        until = time.monotonic() + within
        while len(pulled) < count and (left := until - time.monotonic()) > 0:
            request = PullRequest(subscription=subscription, max_messages=count - len(pulled))
            with suppress(DeadlineExceeded):
                pulled += (found := self._subscriber.pull(request, retry=None, timeout=left).received_messages)
                if not found:  # the emulator waits for nothing
                    time.sleep(0.02)
        if pulled:
            ids = [message.ack_id for message in pulled]
            self._subscriber.acknowledge(subscription=subscription, ack_ids=ids, timeout=10)
        return pulled


@dataclass
class Mishap:
    """
    What happens to a call on its way: an error instead of the answer, or no answer for as long as anyone waits.

    It happens to one call, or while it is `lasting` to each, that names what it is `about`. A `passing` one passes.
    `passing` or `after_effect` the call is passed on, once `first` has ended, and before `then`.
    """

    method: str
    code: grpc.StatusCode | None
    about: str = ""
    lasting: bool = False
    after_effect: bool = False
    reason: str | None = None
    passing: bool = False
    first: Callable[[], object] = lambda: None
    then: Callable[[], object] = lambda: None

    def meets(self, method: str, request: bytes) -> bool:
        """Tell whether such a call is meant; a method of "" is any."""
        return self.method in ("", method) and self.about.encode() in request


class Relay:
    """A gRPC server that passes calls on to an emulator, but for the mishaps that are planned."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._mishaps: list[Mishap] = []
        self.calls: list[str] = []
        self.ends: list[tuple[str, grpc.StatusCode]] = []

    def __enter__(self) -> Self:
        self._channel = grpc.insecure_channel(self._target)
        self._server = grpc.server(ThreadPoolExecutor(64))  # a call that gets no answer holds one of them
        self._server.add_generic_rpc_handlers((_Passing(self._passed),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(grace=None).wait()
        self._channel.close()

    def plan(self, method: str, code: grpc.StatusCode | None, **more: Any) -> None:
        """Let the next call of a method, by its short name, meet a mishap; with `code` None it gets no answer."""
        with self._lock:
            self._mishaps.append(Mishap(method, code, **more))

    def heal(self, about: str) -> None:
        """Forget the mishaps that are planned for what is `about` this."""
        with self._lock:
            self._mishaps = [planned for planned in self._mishaps if planned.about != about]

    def _met(self, method: str, request: bytes) -> Mishap:
        with self._lock:
            for planned in self._mishaps:
                if planned.meets(method, request):
                    if not planned.lasting:
                        self._mishaps.remove(planned)
                    return planned
        return Mishap(method, None, passing=True)

    def _passed(self, path: str, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        method = path.rpartition("/")[2]
        self.calls.append(method)
        mishap = self._met(method, request)
        answers: list[bytes] = []
        if mishap.passing or mishap.after_effect:
            mishap.first()
            given = context.invocation_metadata()
            sent = tuple((name, value) for name, value in given if name.startswith(("x-", "google-")))
            # A call with one answer is, on the wire, a stream of one.
            call: grpc.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(path, bytes, bytes)
            try:
                answers = list(call(request, metadata=sent, timeout=10))
            except grpc.RpcError as error:
                self.ends.append((method, error.code()))
                mishap.then()
                context.abort(error.code(), error.details() or "")
            self.ends.append((method, grpc.StatusCode.OK))
        mishap.then()
        if not mishap.passing:
            if mishap.code is None:
                wait_until_given_up(context)
            refuse(context, mishap.code or grpc.StatusCode.CANCELLED, mishap.reason)
        yield from answers


class _Passing(grpc.GenericRpcHandler):
    def __init__(self, passed: Callable[[str, bytes, grpc.ServicerContext], Iterator[bytes]]) -> None:
        self._passed = passed

    def service(self, details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes]":
        return grpc.unary_stream_rpc_method_handler(partial(self._passed, details.method))


def wait_until_given_up(context: grpc.ServicerContext) -> None:
    """Give no answer for as long as whoever called waits for it."""
    given_up = threading.Event()
    if context.add_callback(given_up.set):
        given_up.wait()


def refuse(context: grpc.ServicerContext, code: grpc.StatusCode, reason: str | None = None) -> NoReturn:
    """Answer a call with an error; its text is nothing that may be passed on."""
    message = "as planned: the secret is hunter2"
    if reason:  # https://google.aip.dev/193#errorinfo
        # They ship no types.
        status = import_module("google.rpc.status_pb2").Status(code=code.value[0], message=message)
        info = import_module("google.rpc.error_details_pb2").ErrorInfo(reason=reason, domain="googleapis.com")
        status.details.add().Pack(info)
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(code, message)


Accessing = Callable[[AccessSecretVersionRequest, grpc.ServicerContext], AccessSecretVersionResponse]


@dataclass
class SecretManagerServer:
    """
    A Secret Manager over gRPC: the real client talks to it.

    `answer` is called for every access with the request and the call's context; `asked` are the names asked for.
    """

    answer: Accessing
    credentials: grpc.ServerCredentials | None = None
    asked: list[str] = field(default_factory=list)
    metadata: list[dict[str, Any]] = field(default_factory=list)
    port: int = 0

    def __enter__(self) -> Self:
        self._server = grpc.server(ThreadPoolExecutor(32))
        # The package brings no servicer, but its types serialize themselves.
        access = grpc.unary_unary_rpc_method_handler(
            self._access,
            request_deserializer=AccessSecretVersionRequest.deserialize,
            response_serializer=AccessSecretVersionResponse.serialize,
        )
        service = "google.cloud.secretmanager.v1.SecretManagerService"
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {"AccessSecretVersion": access}),)
        )
        if self.credentials is None:
            self.port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            self.port = self._server.add_secure_port("127.0.0.1:0", self.credentials)
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(grace=None).wait()

    def _access(
        self, request: AccessSecretVersionRequest, context: grpc.ServicerContext
    ) -> AccessSecretVersionResponse:
        self.asked.append(request.name)
        self.metadata.append(dict(context.invocation_metadata()))
        return self.answer(request, context)


class ConnectProxy:
    """An HTTP proxy that leads whoever wants through it, wherever to, to one port of this machine."""

    def __init__(self, port: int) -> None:
        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                asked.append(self.rfile.readline().decode().split()[1])
                while self.rfile.readline().strip():
                    pass
                with socket.create_connection(("127.0.0.1", port)) as onward:
                    self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
                    back = threading.Thread(target=_pour, args=(onward, self.request), daemon=True)
                    back.start()
                    _pour(self.request, onward)
                    back.join(5)

        self.asked = asked = list[str]()
        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@dataclass(frozen=True)
class SecretManagerOfGoogle:
    """A Secret Manager, the way to it, and the environment in which a client takes that way."""

    server: SecretManagerServer
    proxy: ConnectProxy
    environment: Mapping[str, str]


def _pour(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while some := source.recv(65536):
            target.sendall(some)
        target.shutdown(socket.SHUT_WR)


@contextmanager
def secret_manager(answer: Accessing, *, directory: Path) -> Iterator[SecretManagerOfGoogle]:
    """Serve a Secret Manager over TLS, where whoever wants Google's gets to it."""
    # The client has no setting for another address; what it does honour, as gRPC does, is a proxy and a set of roots.
    key, chain = certificate("secretmanager.googleapis.com")
    (directory / "roots.pem").write_bytes(chain)
    server = SecretManagerServer(answer, credentials=grpc.ssl_server_credentials([(key, chain)]))
    with server, ConnectProxy(server.port) as proxy:
        environment = {
            "GOOGLE_APPLICATION_CREDENTIALS": str(service_account_file(directory / "run.json", "p1")),
            "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(directory / "roots.pem"),
            "grpc_proxy": proxy.url,
            "no_grpc_proxy": "127.0.0.1",
        }
        yield SecretManagerOfGoogle(server, proxy, environment)


def secret_version(data: bytes, *, damaged: bool = False) -> AccessSecretVersionResponse:
    """Give what Secret Manager answers for a version that holds some bytes."""
    checksum = google_crc32c.value(data) ^ damaged
    return AccessSecretVersionResponse(payload=SecretPayload(data=data, data_crc32c=checksum))


@cache  # a process reads its set of roots once, so that one certificate has to do
def certificate(host: str) -> tuple[bytes, bytes]:
    """Make a key, and a certificate for a host that vouches for itself, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pem(key), made.public_bytes(Encoding.PEM)


def service_account_file(path: Path, project: str) -> Path:
    """Write the key of a service account that nobody has; it signs all the same."""
    given = {
        "type": "service_account",
        "project_id": project,
        "private_key_id": "1",
        "private_key": _pem(rsa.generate_private_key(public_exponent=65537, key_size=2048)).decode(),
        "client_email": f"run@{project}.iam.gserviceaccount.com",
        "token_uri": "http://127.0.0.1:9/token",
    }
    path.write_text(json.dumps(given))
    return path


def _pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
