"""Stand in for a Terraform provider: know its schema and nothing else.

Terraform starts it (`python -m infra.provider SCHEMA OVERLAY`) as it would start the real one, over plugin protocol 5,
so that real `init`, `validate`, `plan` and `test` run with no registry and no cloud. Core checks arguments, nesting and
types by the schema; this adds the enums, ranges and patterns that are known, fills in the values that the real provider
would compute where they follow from others, and writes the one thing that has content, the zip of `archive_file`.

It can't know what only the API refuses.
"""

import base64
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from functools import cached_property
from pathlib import Path
from typing import Any

import grpc
from infra.wire import (
    UNKNOWN,
    Fields,
    nested,
    number,
    one,
    parse,
    schema_out,
    step,
    text,
    value_in,
    value_out,
)

Place = tuple[str | int, ...]


def blocks(block: Mapping[str, Any], value: dict[str, Any], place: Place = ()) -> Iterator[tuple[Any, Any, Place]]:
    """Go through a block and all within it: its schema, its value and its place."""
    yield block, value, place
    for name, kind in block.get("block_types", {}).items():
        inner = value.get(name)
        each: list[tuple[Place, Any]] = []
        if isinstance(inner, list):
            each = [((name, at), item) for at, item in enumerate(inner)]
        elif isinstance(inner, dict):
            each = [((name,), inner)]
        for where, item in each:
            if isinstance(item, dict):
                yield from blocks(kind["block"], item, place + where)


def dotted(place: Place, name: str) -> str:
    """Write a place without the indexes."""
    return ".".join([part for part in place if isinstance(part, str)] + [name])


def known(kind: Any) -> Any:
    """Make up a value of a type, for what an apply would tell."""
    if kind == "string":
        return "made-up"
    if kind in ("number", "bool"):
        return 1 if kind == "number" else False
    if kind == "dynamic":
        return None
    return {} if kind[0] in ("map", "object") else []


def zip_of(sources: list[dict[str, str]]) -> dict[str, bytes]:
    """Give what `archive_file` puts into a zip made from `source` blocks, in its order."""
    return {item["filename"]: item["content"].encode() for item in sorted(sources, key=lambda item: item["filename"])}


def write_zip(value: dict[str, Any]) -> None:
    """Do what the archive provider does for `source` blocks: sorted entries, no date, one mode, hash of the result."""
    path = Path(value["output_path"])
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in zip_of(value["source"]).items():
            entry = zipfile.ZipInfo(name)  # dated 1980, as the real one's entries
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)
    data = path.read_bytes()
    value["output_sha256"] = hashlib.sha256(data).hexdigest()
    value["output_base64sha256"] = base64.b64encode(hashlib.sha256(data).digest()).decode()
    value["output_size"] = len(data)


class Provider:
    """Answer the calls of protocol 5; each method has the name of its call and takes and gives encoded messages."""

    def __init__(self, schema: Mapping[str, Any], overlay: Mapping[str, Any]) -> None:
        (schemas,) = schema["provider_schemas"].values()
        self.provider = schemas["provider"]
        self.resources = schemas.get("resource_schemas", {})
        self.data = schemas.get("data_source_schemas", {})
        self.rules = overlay["rules"]
        self.computed = overlay["computed"]

    def GetSchema(self, _: Fields) -> bytes:  # noqa: N802 - the protocol's own name, as all below
        return self._schema

    @cached_property
    def _schema(self) -> bytes:
        out = nested(1, schema_out(self.provider))
        for no, schemas in ((2, self.resources), (3, self.data)):
            for name, schema in schemas.items():
                out += nested(no, text(1, name) + nested(2, schema_out(schema)))
        return out + nested(6, number(2, value=True))

    def GetMetadata(self, _: Fields) -> bytes:  # noqa: N802
        return (
            nested(1, number(2, value=True))
            + b"".join(nested(3, text(1, name)) for name in self.data)
            + b"".join(nested(4, text(1, name)) for name in self.resources)
        )

    def GetFunctions(self, _: Fields) -> bytes:  # noqa: N802
        return b""

    def Stop(self, _: Fields) -> bytes:  # noqa: N802
        return b""

    def Configure(self, _: Fields) -> bytes:  # noqa: N802
        return b""

    def PrepareProviderConfig(self, request: Fields) -> bytes:  # noqa: N802
        return nested(1, one(request, 1))

    def ValidateResourceTypeConfig(self, request: Fields) -> bytes:  # noqa: N802
        kind = one(request, 1).decode()
        return self._problems(kind, self.resources[kind]["block"], value_in(one(request, 2)))

    def ValidateDataSourceConfig(self, request: Fields) -> bytes:  # noqa: N802
        kind = one(request, 1).decode()
        return self._problems(f"data.{kind}", self.data[kind]["block"], value_in(one(request, 2)))

    def UpgradeResourceState(self, request: Fields) -> bytes:  # noqa: N802
        return nested(1, nested(2, one(parse(one(request, 3)), 1)))

    def ReadResource(self, request: Fields) -> bytes:  # noqa: N802
        return nested(1, one(request, 2))

    def PlanResourceChange(self, request: Fields) -> bytes:  # noqa: N802
        kind = one(request, 1).decode()
        value = value_in(one(request, 3))
        if value is not None:
            self._fill(kind, self.resources[kind]["block"], value, UNKNOWN)
        return nested(1, value_out(value)) + number(5, value=True)

    def ApplyResourceChange(self, request: Fields) -> bytes:  # noqa: N802
        kind = one(request, 1).decode()
        value = value_in(one(request, 3))
        if value is not None:
            self._fill(kind, self.resources[kind]["block"], value, None)
        return nested(1, value_out(value)) + number(4, value=True)

    def ReadDataSource(self, request: Fields) -> bytes:  # noqa: N802
        kind = one(request, 1).decode()
        value = value_in(one(request, 2))
        if kind == "archive_file":
            write_zip(value)
        self._fill(f"data.{kind}", self.data[kind]["block"], value, None)
        return nested(1, value_out(value))

    def _problems(self, kind: str, block: Mapping[str, Any], value: Any) -> bytes:
        out = b""
        rules = self.rules.get(kind, {})
        for inner, held, place in blocks(block, value or {}):
            for name, attribute in inner.get("attributes", {}).items():
                given = held.get(name)
                where = dotted(place, name)
                if given is not None and attribute.get("computed") and not attribute.get("optional"):
                    out += self._diagnostic((*place, name), f"{where} is decided by the provider")
                if given is None or given is UNKNOWN:
                    continue
                rule = rules.get(where, {})
                if isinstance(given, str):
                    allowed = rule.get("enum", attribute.get("x_enum"))
                    if allowed and given not in allowed:
                        out += self._diagnostic((*place, name), f"expected {where} to be one of {allowed}, got {given}")
                    if "regex" in rule and not re.fullmatch(rule["regex"], given):
                        out += self._diagnostic((*place, name), f"{where}: {given!r} does not match {rule['regex']}")
                elif "range" in rule and not rule["range"][0] <= given <= rule["range"][1]:
                    out += self._diagnostic((*place, name), f"expected {where} in {rule['range']}, got {given}")
        return out

    @staticmethod
    def _diagnostic(place: Place, detail: str) -> bytes:
        path = b"".join(nested(1, text(1, part) if isinstance(part, str) else step(3, part)) for part in place)
        return nested(1, number(1, 1) + text(2, "Invalid value") + text(3, detail) + nested(4, path))

    def _fill(self, kind: str, block: Mapping[str, Any], root: dict[str, Any], otherwise: Any) -> None:
        """Give every computed value that nobody set: what follows from other values, or else what `otherwise` says."""
        for inner, held, place in blocks(block, root):
            for name, attribute in inner.get("attributes", {}).items():
                given = held.get(name)
                if given is not UNKNOWN and (given is not None or not attribute.get("computed")):
                    continue
                told = self._told(kind, dotted(place, name), root)
                held[name] = (
                    told if told is not None else otherwise if otherwise is UNKNOWN else known(attribute["type"])
                )

    def _told(self, kind: str, where: str, root: Mapping[str, Any]) -> Any:
        form = self.computed.get(kind, {}).get(where)
        if not isinstance(form, str):
            return form
        parts = re.findall(r"\{(\w+)\}", form)
        if any(not isinstance(root.get(part), str) for part in parts):
            return None
        return form.format_map(root)


def serve(provider: Provider) -> None:
    """Serve on a socket of our own, and tell Terraform where."""
    folder = tempfile.mkdtemp(prefix="provider")
    address = f"unix:{folder}/socket"

    def handler(call: Callable[[Fields], bytes]) -> Any:
        def run(request: bytes, _context: grpc.ServicerContext) -> bytes:
            return call(parse(request))

        return grpc.unary_unary_rpc_method_handler(run)

    def shutdown(_: Fields) -> bytes:
        threading.Timer(0.02, leave).start()
        return b""

    def leave() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)

    calls = {name: handler(getattr(provider, name)) for name in dir(Provider) if name[0].isupper()}
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.server(futures.ThreadPoolExecutor(4), options=unlimited)
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler("tfplugin5.Provider", calls),
            grpc.method_handlers_generic_handler("plugin.GRPCController", {"Shutdown": handler(shutdown)}),
            grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": handler(lambda _: number(1, 1))}),
        )
    )
    server.add_insecure_port(address)
    server.start()
    sys.stdout.write(f"1|5|unix|{folder}/socket|grpc|\n")
    sys.stdout.flush()
    server.wait_for_termination()


if __name__ == "__main__":
    serve(Provider(json.loads(Path(sys.argv[1]).read_text()), json.loads(Path(sys.argv[2]).read_text())))
