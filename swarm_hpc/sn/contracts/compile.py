"""Compiles the Vyper sources beside this file to the committed artifacts (needs the dev extra: vyper).

Run as a script after a change of a .vy file: `python swarm_hpc/sn/contracts/compile.py`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from vyper import compile_code  # type: ignore[import-untyped]
from vyper.compiler.settings import Settings  # type: ignore[import-untyped]

FOLDER = Path(__file__).resolve().parent
CONTRACTS = ("Registry", "Training", "Tasks")
# No PUSH0 in london bytecode: it runs on every EVM from Berlin on.
EVM_VERSION = "london"


def artifact(name: str) -> str:
    """ABI and bytecode of one contract as the text of its artifact file: the same source gives the same text."""
    source = (FOLDER / f"{name}.vy").read_text()
    output = compile_code(source, output_formats=["abi", "bytecode"], settings=Settings(evm_version=EVM_VERSION))
    return json.dumps({"contract": name, "abi": output["abi"], "bytecode": output["bytecode"]}, indent=1) + "\n"


if __name__ == "__main__":
    for contract in CONTRACTS:
        text = artifact(contract)
        (FOLDER / f"{contract}.json").write_text(text)
        sys.stderr.write(f"{contract}: {len(json.loads(text)['bytecode']) // 2 - 1} bytes\n")
