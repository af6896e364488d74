"""The other ways to run it: the Dockerfile, whose steps are executed in a clean folder, and the Knative manifests."""

import fnmatch
import hashlib
import http.client
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from infra.workbench import HERE, MODULE, ROOT
from modelarts_cleanup import settings

DOCKERFILE = MODULE / "container" / "Dockerfile"
KNATIVE = MODULE / "knative"
# Types generated from the definitions (CRDs) that Knative publishes.
KNATIVE_TYPES = ["cloudcoil.models.knative_serving==1.17.0.1", "cloudcoil.models.knative_eventing==1.17.1.1"]


def steps() -> list[tuple[str, str]]:
    """Read the Dockerfile: instruction and argument, continued lines joined and comments left out."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line.strip() and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split(maxsplit=1)[0], " ".join(line.split(maxsplit=1)[1].split())) for line in joined.splitlines()]


def of(instruction: str) -> list[str]:
    return [argument for name, argument in steps() if name == instruction]


def environment() -> dict[str, str]:
    return dict(part.split("=", 1) for argument in of("ENV") for part in shlex.split(argument))


# ---- lint ------------------------------------------------------------------------------------------------------------


def test_every_base_is_pinned_by_its_digest_and_the_same() -> None:
    bases = [argument.split()[0] for argument in of("FROM")]
    assert len(bases) == 2
    assert len(set(bases)) == 1
    assert re.fullmatch(r"python:3\.11-slim@sha256:[0-9a-f]{64}", bases[0])


def test_it_runs_as_a_number_that_is_not_root() -> None:
    after = [name for name, _ in steps()].index("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", of("USER")[-1])
    assert not {name for name, _ in steps()[after:]} & {"RUN", "COPY", "ADD"}, "only what root made may stand there"


def test_it_uses_only_what_it_should() -> None:
    assert {name for name, _ in steps()} <= {"FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "EXPOSE", "CMD"}
    assert of("CMD")[-1].startswith("["), "in the form that needs no shell, so that signals arrive"
    assert not [name for name in environment() if re.search(r"SECRET|KEY|TOKEN|PASSWORD|CREDENTIALS", name)]
    assert all("--require-hashes" in run for run in of("RUN") if " pip " in run)
    assert environment()["THREADS"] == "8"


# ---- its steps, executed ---------------------------------------------------------------------------------------------


def matches(path: str, pattern: str) -> bool:
    """Match as a .dockerignore does: a pattern also matches all below it, and `**` is any number of folders."""
    options = {pattern, pattern.replace("/**/", "/")}
    parts = path.split("/")
    return any(fnmatch.fnmatchcase("/".join(parts[: at + 1]), option) for at in range(len(parts)) for option in options)


def sent(tree: Path) -> set[str]:
    """List what the build may see of a tree."""
    rules = [rule for rule in Path(f"{DOCKERFILE}.dockerignore").read_text().splitlines() if not rule.startswith("#")]
    seen = set()
    for file in tree.rglob("*"):
        path = file.relative_to(tree).as_posix()
        said = [not rule.startswith("!") for rule in rules if matches(path, rule.removeprefix("!"))]
        if file.is_file() and not (said and said[-1]):
            seen.add(path)
    return seen


@pytest.fixture(scope="module")
def dirty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("dirty")
    shutil.copytree(ROOT / "function", tree / "function", ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".env", "credentials.csv", "function/key.pem", "function/.env", "function/modelarts_cleanup/c.json"):
        (tree / name).write_text("planted")
    for name in ("function/modelarts_cleanup/local/planted.py", "tests/test_it.py"):
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).write_text("planted")
    return tree


def test_the_build_sees_the_function_and_nothing_else(dirty: Path) -> None:
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "function" / "modelarts_cleanup").rglob("*.py")
        if "local" not in path.relative_to(ROOT).parts and "__pycache__" not in path.parts
    }
    assert sent(dirty) == {"function/main.py", "function/requirements.txt"} | package


@pytest.fixture(scope="module")
def image(dirty: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Do what the first stage does; the second only copies the result. The folder stands for `/app`."""
    context, app = tmp_path_factory.mktemp("context"), tmp_path_factory.mktemp("app")
    for name in sent(dirty):
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(dirty / name, context / name)
    first = steps()[: [name for name, _ in steps()].index("FROM", 1)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for name, argument in first:
        if name == "COPY":
            source, target = argument.split()
            if (context / source).is_dir():
                shutil.copytree(context / source, app / target)
            else:
                shutil.copy(context / source, app / target)
        elif name == "RUN":
            # The cache of this machine's pip stays in use, or each run would download everything again.
            command = shlex.split(argument.replace("--no-cache-dir ", ""))
            done = subprocess.run(
                command, cwd=app, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
            )
            if (
                done.returncode
                and " pip " in argument
                and re.search(r"[Cc]onnection|No matching distribution", done.stderr)
            ):
                pytest.skip("the package index can't be reached")
            assert done.returncode == 0, done.stderr
    return app


def test_everything_is_compiled(image: Path) -> None:
    ours = [image / "main.py", *(image / "modelarts_cleanup").rglob("*.py")]
    for path in ours:
        cached = path.parent / "__pycache__" / f"{path.stem}.{sys.implementation.cache_tag}.pyc"
        assert int.from_bytes(cached.read_bytes()[4:8], "little") == 0b01, "not bound to its source by hash, unchecked"
    assert list((image / "lib" / "flask" / "__pycache__").glob("*.pyc"))
    assert not (image / "modelarts_cleanup" / "local").exists()


def state(tree: Path) -> str:
    told = [f"{path.relative_to(tree)} {path.stat().st_mtime_ns}" for path in sorted(tree.rglob("*"))]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def test_it_starts_answers_and_writes_nothing(image: Path, tmp_path: Path) -> None:
    before = state(image)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {name: value.replace("/app", str(image)) for name, value in environment().items()}
    variables |= {"PORT": str(port), "HOST": "127.0.0.1", "TMPDIR": str(tmp_path), "HOME": "/nonexistent"}
    command = [sys.executable, "-m", "functions_framework"]
    process = subprocess.Popen(command, cwd=image, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        status, body = ask(port)
    finally:
        process.terminate()
        said, _ = process.communicate(timeout=20)
    assert status == 503, said.decode()
    assert "misconfigured" in body
    assert "MODELARTS_REGION" in body, "all that is missing is named"
    assert state(image) == before, "it must run on a read-only file system"


def ask(port: int) -> tuple[int, str]:
    for _ in range(100):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        try:
            connection.request("POST", "/", b"{}", {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read().decode()
        except ConnectionError:
            time.sleep(0.1)
        finally:
            connection.close()
    raise AssertionError("it did not start")


# ---- Knative ---------------------------------------------------------------------------------------------------------


def documents() -> dict[str, dict[str, object]]:
    texts = [text for path in sorted(KNATIVE.glob("*.yaml")) for text in yaml.safe_load_all(path.read_text())]
    return {f"{text['kind']} {text['metadata']['name']}": text for text in texts}


def test_the_manifests_are_what_knative_defines() -> None:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modelarts-cleanup"
    folder = cache / hashlib.sha256(" ".join([*KNATIVE_TYPES, sys.version]).encode()).hexdigest()
    if not folder.exists():
        part = folder.with_suffix(f".{os.getpid()}")
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-compile",
            "--target",
            str(part),
            *KNATIVE_TYPES,
        ]
        if subprocess.run(command, capture_output=True, check=False, timeout=180).returncode:
            pytest.skip("the types of Knative can't be had from the package index")
        part.rename(folder)
    command = [sys.executable, "-W", "ignore", str(HERE / "manifests.py"), *map(str, sorted(KNATIVE.glob("*.yaml")))]
    checked = {"PYTHONPATH": str(folder), "PATH": os.environ["PATH"]}
    done = subprocess.run(command, env=checked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_service_is_internal_locked_down_and_pinned() -> None:
    service = documents()["Service modelarts-cleanup"]
    spec = service["spec"]["template"]["spec"]  # type: ignore[index]
    (container,) = spec["containers"]
    variables = {item["name"]: item["value"] for item in container["env"]}
    assert service["metadata"]["labels"]["networking.knative.dev/visibility"] == "cluster-local"  # type: ignore[index]
    assert str(spec["containerConcurrency"]) == variables["THREADS"]
    assert spec["timeoutSeconds"] == 540
    assert re.search(r"@sha256:[0-9a-f]{64}$", container["image"])
    assert variables["DRY_RUN"] == "true"
    secure = container["securityContext"]
    assert secure["runAsNonRoot"]
    assert secure["readOnlyRootFilesystem"]
    assert not secure["allowPrivilegeEscalation"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    secrets = {volume["name"] for volume in spec["volumes"] if "secret" in volume}
    assert variables["CREDENTIALS"].removeprefix("file://").startswith(mounts[secrets.pop()] + "/")


def test_the_code_can_read_the_services_settings() -> None:
    spec = documents()["Service modelarts-cleanup"]["spec"]["template"]["spec"]  # type: ignore[index]
    settings.read({item["name"]: item["value"] for item in spec["containers"][0]["env"]})


def test_the_trigger_hands_on_expiries_patiently_and_keeps_dead_letters() -> None:
    spec = documents()["Trigger modelarts-cleanup"]["spec"]
    assert spec["filter"] == {"attributes": {"type": "dev.modelarts-cleanup.cluster.expired.v1"}}  # type: ignore[index]
    delivery = spec["delivery"]  # type: ignore[index]
    sink = delivery["deadLetterSink"]["ref"]
    assert f"{sink['kind']} {sink['name']}" in documents()
    assert (delivery["retry"], delivery["backoffPolicy"], delivery["backoffDelay"]) == (20, "linear", "PT30S")
