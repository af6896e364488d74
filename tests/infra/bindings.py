"""Recover a Terraform provider's schema from the bindings that its package on the package index holds.

The bindings (generated for CDK Terraform) keep names, nesting, types, required, optional, computed and, in their
documentation, many enums. They lose sensitive, force-new, defaults and rules across fields. Only facts are read from
them; none of their code is run.
"""

import io
import re
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_FLAGS = re.compile(
    r"^\s+// (\w+) - computed: (true|false), optional: (true|false), required: (true|false)\n"
    r"(.*?)(?=^\s+// (?:\w+ - computed|=====)|^\s+}\n\s+// =|\Z)",
    re.DOTALL | re.MULTILINE,
)
_CLASS = re.compile(r"^class (\w+) extends cdkt[nf]\.(\w+) \{\n(.*?)^\}\n", re.DOTALL | re.MULTILINE)
_SYNTHESIS = re.compile(r"^function (\w+)ToHclTerraform\(struct\) \{\n(.*?)^\}\n", re.DOTALL | re.MULTILINE)
_GETTER = re.compile(
    r"^    get (\w+)\(\) \{\n\s+return "
    r"((?:cdkt[nf]\.Fn\.tolist\()?(?:cdkt[nf]\.Token\.asNumber\w*\()?this\.get\w+Attribute\('(\w+)'\)[^;]*);",
    re.MULTILINE,
)
_ENTRY = re.compile(
    r"(\w+): \{\n\s+value: (.*?),\n\s+isBlock: (true|false),\n\s+type: \"(\w+)\",\n\s+storageClassType: \"(\w+)\",\n",
    re.DOTALL,
)
_INTERFACE = re.compile(r"^export interface (\w+)[^{]*\{\n(.*?)^\}\n", re.DOTALL | re.MULTILINE)
_MEMBER = re.compile(r"/\*\*(.*?)\*/\s+readonly (\w+)(\??):", re.DOTALL)
_POSSIBLE = re.compile(r"Possible values: \[((?:\"[^\"]*\",? ?)+)\]")

_SCALARS = {"string": "string", "number": "number", "boolean": "bool"}
_GETTERS: dict[str, Any] = {
    "getStringAttribute": "string",
    "getNumberAttribute": "number",
    "getBooleanAttribute": "bool",
    "getListAttribute": ["list", "string"],
    "getNumberListAttribute": ["list", "number"],
    "getStringMapAttribute": ["map", "string"],
    "getNumberMapAttribute": ["map", "number"],
    "getBooleanMapAttribute": ["map", "bool"],
    "getAnyMapAttribute": ["map", "string"],
}
_MAPS: dict[str, Any] = {
    "StringMap": ["map", "string"],
    "NumberMap": ["map", "number"],
    "BooleanMap": ["map", "bool"],
    "AnyMap": ["map", "string"],
    "StringMapList": ["list", ["map", "string"]],
}

# (computed, optional, required) and the code that reads it; None where bindings are too old to say.
Flags = tuple[bool | None, bool | None, bool | None, str]
Entry = tuple[str, str, str, str, str]


def _modules(wheel: Path, wanted: set[str]) -> dict[str, tuple[str, str]]:
    """Read code and types of the wanted modules, and of no other, out of the archive in the wheel."""
    code: dict[str, list[tuple[str, str]]] = {}
    with zipfile.ZipFile(wheel) as outer:
        inner = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(inner)), mode="r:gz") as archive:
            for member in archive:
                parts = member.name.split("/")
                if len(parts) > 3 and parts[1] == "lib" and parts[2] in wanted and parts[-1].endswith((".js", ".d.ts")):
                    held = archive.extractfile(member)
                    assert held is not None
                    code.setdefault(parts[2], []).append((parts[-1], held.read().decode()))
    return {
        name: (
            "\n".join(text.split("//# sourceMappingURL")[0] for file, text in sorted(files) if file.endswith(".js")),
            "\n".join(text for file, text in sorted(files) if file.endswith(".d.ts")),
        )
        for name, files in code.items()
    }


class Module:
    """One resource, data source or provider of the bindings."""

    def __init__(self, code: str, types: str) -> None:
        self.classes = {found[1]: found[3] for found in _CLASS.finditer(code)}
        self.bases = {found[1]: found[2] for found in _CLASS.finditer(code)}
        self.synthesis: dict[str, list[Entry]] = {
            _upper(found[1]): _ENTRY.findall(found[2]) for found in _SYNTHESIS.finditer(code)
        }
        self.enums: dict[tuple[str, str], list[str]] = {}
        self.required: dict[tuple[str, str], bool] = {}
        for interface in _INTERFACE.finditer(types):
            for member in _MEMBER.finditer(interface[2]):
                link = re.search(r"#(\w+) \w+#(\w+)\}", member[1])
                if not link:
                    continue
                key = (interface[1], link[2])
                self.required[key] = member[3] == ""
                told = _POSSIBLE.search(" ".join(line.strip(" *") for line in member[1].splitlines()))
                if told:
                    self.enums[key] = re.findall(r'"([^"]*)"', told[1])

    def schema(self, base: str) -> dict[str, Any]:
        """Give the schema of the one class of the module that extends `base`."""
        name = next(name for name, of in self.bases.items() if of == base)
        body = self.classes[name]
        entries = _ENTRY.findall(body[body.index("synthesizeHclAttributes()") :])
        return {"version": 0, "block": self._block(name, entries, body, f"{name}Config")}

    def version(self) -> str | None:
        """Give the provider's version that the bindings were made from."""
        told = (re.search(r"providerVersion: '([^']+)'", body) for body in self.classes.values())
        return next((found[1] for found in told if found), None)

    def _flags(self, body: str) -> dict[str, Flags]:
        flags: dict[str, Flags] = {
            name: (computed == "true", optional == "true", required == "true", code)
            for name, computed, optional, required, code in _FLAGS.findall(body)
        }
        for _, code, name in _GETTER.findall(body):
            flags.setdefault(name, (None, None, None, code))
        return flags

    def _object(self, struct: str) -> Any:
        body = self.classes.get(f"{struct}OutputReference", "")
        return ["object", {name: self._read_type(name, flags[3]) for name, flags in self._flags(body).items()}]

    def _read_type(self, name: str, code: str) -> Any:
        """Tell the type of a value from the code that reads it."""
        made = re.search(rf"new (?:cdkt[nf]\.)?(\w+)\(this, ['\"]{name}['\"](?:, (true|false))?\)", code)
        if made:
            if made[1] in _MAPS:
                return _MAPS[made[1]]
            if made[1].endswith("OutputReference"):
                return ["list", self._object(made[1].removesuffix("OutputReference"))]
            if made[1].endswith(("List", "Map")):
                struct = re.sub(r"(Map)?List$|Map$", "", made[1])
                ordered = "set" if made[2] == "true" else "list"
                return ["map" if self.bases.get(made[1]) == "ComplexMap" else ordered, self._object(struct)]
        got = re.search(r"(tolist\()?this\.(get\w+Attribute)\(", code)
        if got and got[2] in _GETTERS:
            kind = _GETTERS[got[2]]
            return ["set", kind[1]] if got[1] and kind[0] == "list" else kind
        return "dynamic"

    def _block(self, struct: str, entries: Iterable[Entry], body: str, config: str) -> dict[str, Any]:
        attributes: dict[str, Any] = {}
        kinds: dict[str, Any] = {}
        flags = self._flags(body)
        for name, value, is_block, kind, storage in entries:
            computed, optional, required, _ = flags.get(name, (None, None, None, ""))
            if required is None:
                required = self.required.get((config, name), False)
                computed, optional = False, not required
            plain = re.sub(r"cdkt[nf]\.(string|number|boolean|any)ToHclTerraform", "", value)
            mapper = re.search(r"(\w+)ToHclTerraform", plain)
            inner = _upper(mapper[1]) if mapper else None
            if is_block == "true" and inner:
                many = "listMapperHcl" in value or "hashMapperHcl" in value
                kinds[name] = self._nested(inner, kind, required or self.required.get((config, name), False), many=many)
                continue
            if kind == "simple":
                type_: Any = _SCALARS.get(storage, "dynamic")
            elif inner:
                type_ = ["list" if kind == "struct" else kind, self._object(inner)]
            else:
                type_ = [kind, _SCALARS.get(re.sub(r"(List|Map|Set)$", "", storage), "string")]
            attribute: dict[str, Any] = {"type": type_}
            told = {"required": required, "optional": optional, "computed": computed}
            attribute |= {flag: True for flag, said in told.items() if said} or {"optional": True}
            if (config, name) in self.enums:
                attribute["x_enum"] = self.enums[config, name]
            attributes[name] = attribute
        for name, (_, _, _, code) in flags.items():
            if name not in attributes and name not in kinds:
                attributes[name] = {"type": self._read_type(name, code), "computed": True}
        return {"attributes": attributes, "block_types": kinds}

    def _nested(self, struct: str, kind: str, required: bool, *, many: bool) -> dict[str, Any]:  # noqa: FBT001
        nesting = {"list": "list", "set": "set", "struct": "single", "map": "map"}[kind]
        body = self.classes.get(f"{struct}OutputReference", "")
        out: dict[str, Any] = {
            "nesting_mode": nesting,
            "block": self._block(struct, self.synthesis[struct], body, struct),
        }
        if nesting in ("list", "set"):
            out |= ({"min_items": 1} if required else {}) | ({} if many else {"max_items": 1})
        return out


def _upper(name: str) -> str:
    return name[0].upper() + name[1:]


def schema_of(wheel: Path, provider: str, types: Iterable[str]) -> dict[str, Any]:
    """Read the schema of some types (`google_x`, `data.google_y`) of a provider (`google`) from its bindings.

    The result has the layout of `terraform providers schema -json`, and the provider's version as `x_version`. A type
    that the bindings don't have is left out, as the provider would not have it either.
    """
    folders = {}
    for kind in types:
        name = kind.removeprefix("data.")
        is_data = kind != name
        short = name if is_data else name.removeprefix(f"{provider}_")
        folders[kind] = ("data-" if is_data else "") + short.replace("_", "-")
    modules = {name: Module(*texts) for name, texts in _modules(wheel, set(folders.values()) | {"provider"}).items()}
    found = {kind: modules[folder] for kind, folder in folders.items() if folder in modules}
    resources = {
        kind: module.schema("TerraformResource") for kind, module in found.items() if not kind.startswith("data.")
    }
    data = {
        kind.removeprefix("data."): module.schema("TerraformDataSource")
        for kind, module in found.items()
        if kind.startswith("data.")
    }
    return {
        "format_version": "1.0",
        "x_version": next(iter(found.values())).version(),
        "provider_schemas": {
            provider: {
                "provider": {"version": 0, "block": {"attributes": {}}}
                if provider == "archive"
                else modules["provider"].schema("TerraformProvider"),
                "resource_schemas": resources,
                "data_source_schemas": data,
            }
        },
    }


def borrow_computed(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Copy which optional values are computed from newer bindings, where the old ones can't tell."""
    for name, attribute in old.get("attributes", {}).items():
        newer = new.get("attributes", {}).get(name, {})
        if attribute.get("optional") and newer.get("optional") and newer.get("computed"):
            attribute["computed"] = True
    for name, kind in old.get("block_types", {}).items():
        if name in new.get("block_types", {}):
            borrow_computed(kind["block"], new["block_types"][name]["block"])
