"""What a node is refused for, as its operator sees it: one line that says what to do, and the exit code of its kind."""

import shutil
import socket
import subprocess

import pytest

from swarm_hpc.config import TransferConfig
from swarm_hpc.errors import ProgramFailed
from swarm_hpc.identity import ca
from swarm_hpc.local.folder import TRUST_DOMAIN
from swarm_hpc.local.swarm import sl_name
from tests.system.conftest import Network, until

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(300)]


def end_of(network: Network, site: str) -> tuple[int, str]:
    """Exit code and last line of the site's SL."""
    process = network.swarm.processes[site]
    until(lambda: process.code is not None, f"{site} to end")
    lines = process.log.read_text().splitlines()
    last = next(line for line in reversed(lines) if line.startswith("swarm-hpc: "))
    assert process.code is not None
    assert "a bug" not in last
    return process.code, last


def test_a_port_in_use(network):
    net = network("alpha", min_peers=1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ProgramFailed, match=f"sn ended with exit code 1: .*{port}"):
            net.swarm.start_sn(port=port)


def test_a_certificate_of_another_ca(network, tmp_path):
    net = network("alpha beta")
    net.swarm.start_sn()
    ca.create_ca("beta", TRUST_DOMAIN, tmp_path / "forged")
    ca.issue(tmp_path / "forged", sl_name("beta"), net.folder.certs("beta"))
    net.start_sl("beta")
    code, text = end_of(net, "beta")
    assert code == 3
    assert "sl-sl-1.pem" in text


def test_a_ca_that_the_network_does_not_know(network, tmp_path):
    """The stranger's own bundle trusts everybody; the SN's does not trust the stranger."""
    net, stranger = network("alpha beta"), network("alpha beta")
    net.swarm.start_sn()
    certs = tmp_path / "bundle.json"
    cas = {"alpha": net.folder.ca("alpha") / "ca.pem", "beta": stranger.folder.ca("beta") / "ca.pem"}
    ca.write_bundle(cas, TRUST_DOMAIN, certs)
    identity = stranger.folder.identity(sl_name("beta"))
    identity.bundle = str(certs)
    net.start_sl("beta", identity=identity)
    code, text = end_of(net, "beta")
    assert code == 3
    assert "certificate" in text.lower() or "trust" in text.lower()


def test_a_duplicate_node_name(network):
    net = network("alpha beta")
    net.start()
    net.await_round(1)
    first = net.swarm.processes["alpha"]
    net.start_sl("alpha", state_dir=str(net.folder.root / "another"))
    code, text = end_of(net, "alpha")
    assert code == 3
    assert "alpha/sl/sl-1" in text
    assert first.code is None


def test_a_keras_program_in_a_pytorch_contract(network):
    net = network("alpha beta")
    net.swarm.start_sn()
    net.start_sl("alpha")
    until(lambda: (node := net.node("alpha")) and node.progress.waiting, "alpha to join")
    net.start_sl("beta", env={"PLATFORM": "keras"})
    code, text = end_of(net, "beta")
    assert code == 2
    assert "keras" in text
    assert "pytorch" in text


def test_a_model_of_another_shape(network):
    net = network("alpha beta")
    net.swarm.start_sn()
    net.start_sl("alpha", env={"SIZE": "10"})
    until(lambda: (node := net.node("alpha")) and node.progress.waiting, "alpha to join")
    net.start_sl("beta", env={"SIZE": "11"})
    code, text = end_of(net, "beta")
    assert code == 2
    assert all(word in text for word in ("w", "10", "11"))


def test_too_little_room_for_blobs(network):
    free_mib = shutil.disk_usage("/").total >> 20
    net = network("alpha", min_peers=1, transfer=TransferConfig(min_free_mib=free_mib * 1000))
    net.swarm.start_sn()
    net.start_sl("alpha")
    code, text = end_of(net, "alpha")
    assert code == 1
    assert "min_free_mib" in text


@pytest.fixture
def small_disk():
    """Mounts a file system of 2 MiB at a folder until the end of the test."""
    mounted = []

    def mount(folder):
        folder.mkdir(parents=True)
        words = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
        try:
            done = subprocess.run(words, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("there is no mount program to make a small file system with")
        if done.returncode:
            pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
        mounted.append(folder)

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_for_blobs(network, small_disk):
    net = network("alpha", min_peers=1, transfer=TransferConfig(min_free_mib=0))
    small_disk(net.folder.sn_data / "blobs")
    net.swarm.start_sn()
    net.start_sl("alpha", env={"SIZE": "1000000"})
    code, text = end_of(net, "alpha")
    assert code == 1
    assert "free some space" in text
    assert str(net.folder.sn_data / "blobs") in text
