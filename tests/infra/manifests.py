"""Read Knative manifests into the types generated from Knative's own definitions; run where those are installed.

`python manifests.py FILE…` prints what is wrong, a line each. A field that the definitions don't know gets lost on the
way through the types, which is how a misspelt one is found.
"""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

TYPES = {
    ("serving.knative.dev/v1", "Service"): "cloudcoil.models.knative_serving.serving.v1",
    ("eventing.knative.dev/v1", "Broker"): "cloudcoil.models.knative_eventing.eventing.v1",
    ("eventing.knative.dev/v1", "Trigger"): "cloudcoil.models.knative_eventing.eventing.v1",
}


def lost(given: Any, read: Any, place: str) -> Iterator[str]:
    """Compare what was written with what was understood."""
    if isinstance(given, dict) and isinstance(read, dict):
        for key, value in given.items():
            if key in read:
                yield from lost(value, read[key], f"{place}.{key}")
            else:
                yield f"{place}.{key}: there is no such field"
    elif isinstance(given, list) and isinstance(read, list) and len(given) == len(read):
        for at, (one, other) in enumerate(zip(given, read, strict=True)):
            yield from lost(one, other, f"{place}[{at}]")
    elif str(given) != str(read):
        yield f"{place}: {given!r} is understood as {read!r}"


def problems(path: Path) -> Iterator[str]:
    """Go through the documents of a file."""
    for document in yaml.safe_load_all(path.read_text()):
        where = f"{path.name} {document['kind']} {document['metadata']['name']}"
        module = importlib.import_module(TYPES[document["apiVersion"], document["kind"]])
        try:
            read = getattr(module, document["kind"]).model_validate(document)
        except ValueError as error:
            yield f"{where}: {error}"
            continue
        yield from lost(document, read.model_dump(by_alias=True, mode="json", exclude_unset=True), where)


if __name__ == "__main__":
    found = [problem for name in sys.argv[1:] for problem in problems(Path(name))]
    sys.stdout.write("\n".join(found))
    sys.exit(bool(found))
