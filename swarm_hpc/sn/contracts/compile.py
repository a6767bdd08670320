"""Compiles the Vyper sources beside this file to the committed artifacts (needs the dev extra: vyper).

Run as a script after a change of a .vy file: `python -m swarm_hpc.sn.contracts.compile`.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from vyper import compile_code  # type: ignore[import-untyped]
from vyper.compiler.settings import OptimizationLevel, Settings  # type: ignore[import-untyped]

FOLDER = Path(__file__).resolve().parent
CONTRACTS = ("Registry", "Training", "Tasks", "Shards")
# No PUSH0 in london bytecode: it runs on every EVM from Berlin on.
EVM_VERSION = "london"
# A contract has at most 24576 bytes (EIP-170); gas costs nothing here.
SETTINGS = Settings(evm_version=EVM_VERSION, optimize=OptimizationLevel.CODESIZE)


def source_digest(name: str) -> str:
    """SHA-256 of a contract's source: tells without compiling whether the artifact is its own."""
    return hashlib.sha256((FOLDER / f"{name}.vy").read_bytes()).hexdigest()


def compiled(name: str) -> str:
    """One contract as the text of its artifact file: the same source gives the same text."""
    source = (FOLDER / f"{name}.vy").read_text()
    output = compile_code(source, output_formats=["abi", "bytecode"], settings=SETTINGS)
    fields = {"contract": name, "source": source_digest(name), "abi": output["abi"], "bytecode": output["bytecode"]}
    return json.dumps(fields, indent=1) + "\n"


def main() -> None:
    """Write all artifacts and say how large the contracts are."""
    for name in CONTRACTS:
        text = compiled(name)
        (FOLDER / f"{name}.json").write_text(text)
        sys.stderr.write(f"{name}: {len(json.loads(text)['bytecode']) // 2 - 1} bytes\n")


if __name__ == "__main__":
    main()
