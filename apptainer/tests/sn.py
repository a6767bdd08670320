"""`apptainer test sn.sif`: a site with certificates of its own starts an SN, asks how it does, and stops it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from swarm_hpc.sn.programs import find_program

START_S = 90
STOP_S = 60


def main() -> None:
    assert not any(find_spec(name) for name in ("torch", "tensorflow")), "this image is to be without torch, TensorFlow"
    for name in ("geth", "cometbft"):
        print(f"{name}: {find_program(name, '', os.environ)}")
    with TemporaryDirectory(prefix="swarm-hpc-test-") as folder:
        check_node(Path(folder))


def check_node(folder: Path) -> None:
    swarm_hpc("certs", "ca", "alpha", "--trust-domain", "image.test", "--out", str(folder))
    bundle = folder / "bundle.json"
    swarm_hpc("certs", "bundle", f"alpha={folder / 'ca.pem'}", "--trust-domain", "image.test", "--out", str(bundle))
    for node in ("sn/sn", "swci/me"):
        swarm_hpc("certs", "issue", f"alpha/{node}", "--ca", str(folder), "--out", str(folder))
    words = ["swarm-hpc", "sn", "port=0", f"data_dir={folder / 'data'}", *identity(folder, "sn-sn")]
    with (folder / "log").open("wb") as log:
        node = subprocess.Popen(words, stdout=log, stderr=log, cwd=folder)
    try:
        address = await_address(node, folder)
        status = json.loads(swarm_hpc("status", "--json", f"sn={address}", *identity(folder, "swci-me")))
        print(f"{status['node']} version {status['version']} answers; ledger {status['ledger']['kind']}")
        node.send_signal(signal.SIGTERM)
        code = node.wait(STOP_S)
        assert code == 0, f"the SN ended with {code}: {(folder / 'log').read_text()}"
    finally:
        node.kill()
        node.wait()


def swarm_hpc(*words: str) -> str:
    return subprocess.run(["swarm-hpc", *words], stdout=subprocess.PIPE, text=True, check=True, timeout=START_S).stdout


def identity(folder: Path, name: str) -> list[str]:
    files = {"cert": f"{name}.pem", "key": f"{name}-key.pem", "bundle": "bundle.json"}
    return [f"identity.{kind}={folder / file}" for kind, file in files.items()]


def await_address(node: subprocess.Popen[bytes], folder: Path) -> str:
    """host:port of the SN, once it is ready."""
    deadline = time.monotonic() + START_S
    while not (file := folder / "data" / "endpoint.json").exists():
        said = (folder / "log").read_text()
        assert node.poll() is None, f"the SN ended with {node.returncode}: {said}"
        assert time.monotonic() < deadline, f"no SN after {START_S} s: {said}"
        time.sleep(0.1)
    return str(json.loads(file.read_text())["address"])


if __name__ == "__main__":
    main()
