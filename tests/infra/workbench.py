"""Run Terraform on copies of the module, with stand-ins for its providers, and read what it plans."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from infra.bindings import borrow_computed, schema_of

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
MODULE = ROOT / "infra"

# The newest bindings of each major version that the module admits, and the provider that they were made from.
GOOGLE = {
    "6.50.0": "cdktf-cdktf-provider-google==16.12.1",
    "7.46.1": "cdktn-provider-google==20.3.1",
    "8.7.0": "cdktn-provider-google==21.1.0",
}
ARCHIVE = "cdktn-provider-archive==14.0.1"

# What a newcomer has to say, and no more.
FIVE: dict[str, Any] = {
    "project_id": "example-project",
    "region": "europe-west1",
    "modelarts_region": "cn-southwest-2",
    "allowed_projects": ["0123456789abcdef0123456789abcdef"],
    "allowed_names": ["ci-*", "test-*"],
}


class SchemaMissingError(Exception):
    """The package index did not hand out the bindings."""


def types_used() -> list[str]:
    """List the resource and data source types that the module names."""
    text = "".join(file.read_text() for file in sorted(MODULE.glob("*.tf")))
    found = re.findall(r'^(resource|data) "(\w+)"', text, re.MULTILINE)
    return sorted({("data." if kind == "data" else "") + name for kind, name in found})


def _download(requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise SchemaMissingError(f"{requirement} can't be had from the package index")
    return wheels[0]


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modelarts-cleanup" / "schemas"


def schema(requirement: str, provider: str) -> Path:
    """Give the file with the schema of all types used, made from the bindings once and then kept.

    Raises SchemaMissingError.
    """
    types = [kind for kind in types_used() if kind.removeprefix("data.").startswith(f"{provider}_")]
    recipe = "\n".join([requirement, *types, (HERE / "bindings.py").read_text()])
    path = _cache() / f"{hashlib.sha256(recipe.encode()).hexdigest()}.json"
    if not path.exists():
        with tempfile.TemporaryDirectory() as folder:
            document = schema_of(_download(requirement, Path(folder)), provider, types)
        if requirement == GOOGLE["6.50.0"]:
            newer = json.loads(schema(GOOGLE["7.46.1"], provider).read_text())
            _borrow(document, newer)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(document))
        part.replace(path)
    return path


def _borrow(old: dict[str, Any], new: dict[str, Any]) -> None:
    (olds,), (news,) = old["provider_schemas"].values(), new["provider_schemas"].values()
    for name, resource in olds["resource_schemas"].items():
        if name in news["resource_schemas"]:
            borrow_computed(resource["block"], news["resource_schemas"][name]["block"])


class Plan:
    """What Terraform plans to make, by address."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document
        planned = self._resources(document["planned_values"]["root_module"])
        self.resources = {self._address(item): item for item in planned if item["mode"] == "managed"}
        prior = self._resources(document.get("prior_state", {}).get("values", {}).get("root_module", {}))
        self.data = {self._address(item): item for item in prior if item["mode"] == "data"}
        self.outputs = {name: item.get("value") for name, item in document["planned_values"].get("outputs", {}).items()}

    def _resources(self, module: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        yield from module.get("resources", [])
        for child in module.get("child_modules", []):
            yield from self._resources(child)

    @staticmethod
    def _address(item: Mapping[str, Any]) -> str:
        return str(item["address"]).removeprefix("module.modelarts_cleanup.")  # the same in an example as in the root

    def __getitem__(self, address: str) -> Any:
        """Give the values of one resource."""
        return self.resources[address]["values"]

    def __contains__(self, address: str) -> bool:
        return address in self.resources

    def of(self, *kinds: str) -> dict[str, Any]:
        """Give the values of all resources of some types."""
        return {address: item["values"] for address, item in self.resources.items() if item["type"] in kinds}

    def everything(self) -> str:
        """Give the whole plan as text, to look for what must not be in it."""
        return json.dumps(self.document)


class Workbench:
    """A copy of the module beside a copy of `function/`, with one version of the providers.

    Terraform spends most of a plan on the text of the function, so where that is not the point, two lines stand for it.
    """

    def __init__(self, folder: Path, google: Path, archive: Path, *, whole: bool) -> None:
        self.folder = folder
        self.module = folder / "tree" / "infra"
        skip = shutil.ignore_patterns(".terraform*", "build", "__pycache__", "*.tfstate*", "*.tfvars*")
        shutil.copytree(MODULE, self.module, ignore=skip)
        shutil.copytree(
            ROOT / "function",
            folder / "tree" / "function",
            ignore=shutil.ignore_patterns("__pycache__"),
            dirs_exist_ok=True,
        )
        self._providers = [self._start(path) for path in (google, archive)]

    def close(self) -> None:
        """Stop the providers."""
        for process, _ in self._providers:
            process.terminate()
            process.communicate()

    def _start(self, path: Path) -> tuple[subprocess.Popen[str], dict[str, Any]]:
        """Start a provider for Terraform to attach to.

        It then looks for none in a registry, nor starts each several times for every command.
        """
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "infra.provider", path, HERE / "overlay.json"],
            env={**os.environ, "PYTHONPATH": str(HERE.parent)},
            cwd=self.module,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        _, protocol, network, address, *_ = process.stdout.readline().split("|")
        return process, {
            "Protocol": "grpc",
            "ProtocolVersion": int(protocol),
            "Pid": process.pid,
            "Test": True,  # leave it running
            "Addr": {"Network": network, "String": address},
        }

    def run(
        self, *arguments: str, where: str = ".", check: bool = True, said: str | None = None, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Run Terraform in a folder of the module, with something said to it, and more in the environment."""
        attached = zip(("google", "archive"), self._providers, strict=True)
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("TF_")},
            **more,
            "TF_IN_AUTOMATION": "1",
            "TF_REATTACH_PROVIDERS": json.dumps({f"hashicorp/{name}": at for name, (_, at) in attached}),
            "CHECKPOINT_DISABLE": "1",
        }
        command = ["terraform", f"-chdir={self.module / where}", *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment, timeout=300, input=said
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def init(self, where: str = ".") -> None:
        """Find modules and providers."""
        self.run("init", "-input=false", "-no-color", where=where)

    def plan(self, variables: Mapping[str, Any], where: str = ".") -> Plan:
        """Plan, and read the plan."""
        file = self.folder / "plan"
        self.run("plan", "-input=false", "-no-color", f"-out={file}", *self._flags(variables), where=where)
        return Plan(json.loads(self.run("show", "-json", str(file), where=where).stdout))

    def refusal(self, variables: Mapping[str, Any]) -> str:
        """Plan what must be refused, and give all that Terraform prints."""
        # Text from the environment: of a file Terraform would quote the line, whatever stands in it.
        texts = {f"TF_VAR_{name}": value for name, value in variables.items() if isinstance(value, str)}
        others = {name: value for name, value in variables.items() if not isinstance(value, str)}
        done = self.run("plan", "-input=false", "-no-color", *self._flags(others), check=False, **texts)
        assert done.returncode != 0, "this should have been refused"
        # One line a message: Terraform folds them to the width of the terminal and draws a line beside them.
        return re.sub(r"[\s│]+", " ", done.stdout + done.stderr)

    def _flags(self, variables: Mapping[str, Any]) -> list[str]:
        if not variables:
            return []
        file = self.folder / "variables.tfvars.json"
        file.write_text(json.dumps(variables))
        return [f"-var-file={file}"]
