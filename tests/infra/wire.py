"""Speak the two encodings of Terraform's plugin protocol: protobuf for the envelope, MessagePack for the values."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

Fields = dict[int, list[Any]]


class Unknown:
    """A value that only an apply would tell."""


UNKNOWN = Unknown()


def _varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def number(no: int, value: int) -> bytes:
    """Encode a number or a flag; zero is not sent, as protobuf has it."""
    return _varint(no << 3) + _varint(int(value)) if value else b""


def text(no: int, value: str | bytes | None) -> bytes:
    """Encode text or bytes; empty is not sent."""
    return nested(no, value.encode() if isinstance(value, str) else value) if value else b""


def nested(no: int, value: bytes) -> bytes:
    """Encode a message as a field, even an empty one."""
    return _varint(no << 3 | 2) + _varint(len(value)) + value


def step(no: int, value: int) -> bytes:
    """Encode an index, which is sent when it is zero, too."""
    return _varint(no << 3) + _varint(value)


def parse(data: bytes) -> Fields:
    """Decode a message into its fields by number, each a list of what came."""
    fields: Fields = {}
    at = 0

    def varint() -> int:
        nonlocal at
        shift = result = 0
        while True:
            byte = data[at]
            at += 1
            result |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return result

    while at < len(data):
        key = varint()
        no, kind = key >> 3, key & 7
        value: Any
        if kind == 0:
            value = varint()
        else:
            size = varint() if kind == 2 else 8 if kind == 1 else 4
            value = data[at : at + size]
            at += size
        fields.setdefault(no, []).append(value)
    return fields


def one(fields: Fields, no: int) -> bytes:
    """Give the last value of a field of bytes, or none."""
    value = fields.get(no, [b""])[-1]
    return value if isinstance(value, bytes) else b""


def _extension(_code: int, _data: memoryview) -> Unknown:
    return UNKNOWN  # the protocol has no other extension than "unknown", with or without hints


def _hook(value: object) -> msgspec.msgpack.Ext:
    if value is UNKNOWN:
        return msgspec.msgpack.Ext(0, b"\0")
    raise NotImplementedError


_DECODER = msgspec.msgpack.Decoder(ext_hook=_extension)
_ENCODER = msgspec.msgpack.Encoder(enc_hook=_hook)


def value_in(data: bytes) -> Any:
    """Decode a DynamicValue."""
    fields = parse(data)
    if 1 in fields:
        return _DECODER.decode(one(fields, 1))
    return json.loads(one(fields, 2)) if 2 in fields else None


def value_out(value: Any) -> bytes:
    """Encode a DynamicValue."""
    return text(1, _ENCODER.encode(value))


NESTING = {"single": 1, "list": 2, "set": 3, "map": 4, "group": 5}


def schema_out(schema: Mapping[str, Any]) -> bytes:
    """Encode a schema of the layout of `terraform providers schema -json`."""
    return number(1, schema.get("version", 0)) + nested(2, _block(schema["block"]))


def _block(block: Mapping[str, Any]) -> bytes:
    return b"".join(_attributes(block.get("attributes", {}).items())) + b"".join(
        nested(
            3,
            text(1, name)
            + nested(2, _block(kind["block"]))
            + number(3, NESTING[kind["nesting_mode"]])
            + number(4, kind.get("min_items", 0))
            + number(5, kind.get("max_items", 0)),
        )
        for name, kind in sorted(block.get("block_types", {}).items())
    )


def _attributes(attributes: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterable[bytes]:
    for name, attribute in sorted(attributes):
        yield nested(
            2,
            text(1, name)
            + text(2, json.dumps(attribute["type"]))
            + number(4, attribute.get("required", False))
            + number(5, attribute.get("optional", False))
            + number(6, attribute.get("computed", False))
            + number(7, attribute.get("sensitive", False)),
        )
