"""The ledger's rules: Vyper sources and, beside each, its compiled artifact (ABI and bytecode), made by compile.py.

This module reads the artifacts and encodes calls by their ABI, several times faster than web3's Contract does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

from eth_abi.abi import decode, encode
from eth_utils.abi import collapse_if_tuple, event_abi_to_log_topic, function_abi_to_4byte_selector
from eth_utils.address import to_checksum_address

Abi = Mapping[str, Any]

TICKS_PER_S: Final = 1000
"""Blocks are stamped in milliseconds: Ethereum wants a later time for each, and many may fall into one second."""


def ticks(seconds: float) -> int:
    """A time in seconds as blocks are stamped."""
    return round(TICKS_PER_S * seconds)


@dataclass(frozen=True, slots=True)
class Function:
    """One function of a contract: what a call of it looks like, and what its answer means."""

    selector: bytes
    inputs: tuple[str, ...]
    outputs: tuple[Abi, ...]

    def encode(self, arguments: Sequence[object]) -> bytes:
        """Data of a call. eth_abi's errors where a value does not fit its type."""
        return self.selector + encode(self.inputs, arguments)

    def decode(self, data: bytes) -> Any:
        """The answer of a call: one value, a struct as a dict by its fields' names; None where it has none."""
        values = decode([collapse_if_tuple(dict(one)) for one in self.outputs], data)
        return _named(self.outputs[0], values[0]) if values else None


@dataclass(frozen=True, slots=True)
class LogEvent:
    """One event of a contract."""

    name: str
    plain: tuple[Abi, ...]

    def decode(self, data: bytes) -> dict[str, Any]:
        """The arguments that are not indexed, by name."""
        return dict(
            zip((one["name"] for one in self.plain), decode([one["type"] for one in self.plain], data), strict=True)
        )


@dataclass(frozen=True, slots=True)
class Artifact:
    """A compiled contract: its functions by name (`__init__` too), its events by topic, its code."""

    name: str
    functions: Mapping[str, Function]
    events: Mapping[bytes, LogEvent]
    bytecode: bytes


@cache
def artifact(name: str) -> Artifact:
    """The committed artifact of `Registry`, `Training`, `Tasks` or `Shards`."""
    found = json.loads(resources.files(__package__).joinpath(f"{name}.json").read_text())
    functions, events = {}, {}
    for one in found["abi"]:
        if one["type"] == "event":
            plain = tuple(part for part in one["inputs"] if not part["indexed"])
            events[event_abi_to_log_topic(one)] = LogEvent(one["name"], plain)
        else:
            creates = one["type"] == "constructor"
            functions["__init__" if creates else one["name"]] = Function(
                selector=b"" if creates else function_abi_to_4byte_selector(one),
                inputs=tuple(collapse_if_tuple(part) for part in one["inputs"]),
                outputs=tuple(one["outputs"]),
            )
    return Artifact(name, functions, events, bytes.fromhex(found["bytecode"].removeprefix("0x")))


def _named(abi: Abi, value: Any) -> Any:
    if abi["type"].endswith("[]"):
        item = {**abi, "type": abi["type"][:-2]}
        return [_named(item, one) for one in value]
    if abi["type"] == "tuple":
        return {part["name"]: _named(part, one) for part, one in zip(abi["components"], value, strict=True)}
    # eth_abi gives addresses in lower case.
    return to_checksum_address(value) if abi["type"] == "address" else value
