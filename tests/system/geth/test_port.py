"""A site has one port, and on it an outsider gets nothing."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
from pathlib import Path

import psutil
import pytest

from swarm_hpc.identity import ca
from swarm_hpc.records import NodeName
from tests.lab.consortium import Consortium

pytestmark = [pytest.mark.geth, pytest.mark.system, pytest.mark.timeout(300)]
P2P, HTTP = "swarm-p2p", "http/1.1"


@pytest.fixture(scope="module")
def net(handed, tmp_path_factory):
    handed.close()  # two networks at a time would disturb each other
    with Consortium(tmp_path_factory.mktemp("port"), "alpha beta") as net:
        net.launch("alpha", host="0.0.0.0")
        net.await_ready("alpha")
        net.launch("beta")
        net.await_whole()
        yield net


def listeners(tree: list[psutil.Process]) -> set[tuple[str, int]]:
    """(address, port) that these processes take TCP connections on, and UDP sockets that are bound."""
    found = set()
    for process in tree:
        for one in process.net_connections("inet"):
            if one.status == psutil.CONN_LISTEN or (one.type == socket.SOCK_DGRAM and one.laddr):
                found.add((one.laddr.ip, one.laddr.port))
    return found


def heard(port: int, alpn: str, cert: Path | None, key: Path | None, bundle: Path, say: bytes) -> bytes:
    """All that an SN says, after the TLS handshake, to a client with that certificate, or with none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # The outsider's own carelessness is not what is tested.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols([alpn])
    if cert is not None:
        context.load_cert_chain(cert, key)
    said = b""
    plain = socket.create_connection(("127.0.0.1", port), timeout=20)
    with plain, contextlib.suppress(OSError), context.wrap_socket(plain) as secured:
        secured.sendall(say)
        while data := secured.recv(4096):
            said += data
    return said


GET = b"GET /v1/status HTTP/1.1\r\nHost: sn\r\nConnection: close\r\n\r\n"


def test_the_only_listener_that_is_not_on_loopback_is_the_sn_port(net):
    own = net.sites["alpha"].psutil()
    tree = [own, *own.children(recursive=True)]
    assert {process.name().split("-")[0] for process in tree} >= {"geth", "cometbft"}
    outside = {(ip, port) for ip, port in listeners(tree) if not ipaddress.ip_address(ip).is_loopback}
    assert outside == {("0.0.0.0", net.sites["alpha"].port)}


@pytest.mark.parametrize("alpn", [HTTP, P2P])
@pytest.mark.parametrize("who", ["nobody", "a stranger", "a stranger with a member's name"])
def test_an_outsider_gets_nothing(net, tmp_path, alpn, who):
    cert = key = None
    if who != "nobody":
        site = "alpha" if "name" in who else "mallory"
        ca.create_ca(site, "swarm.test", tmp_path / "ca")
        cert, key = ca.issue(tmp_path / "ca", NodeName.parse(f"{site}/sn/sn"), tmp_path / "node")
    assert heard(net.sites["alpha"].port, alpn, cert, key, tmp_path, GET) == b""


def test_a_member_is_answered_on_the_port_but_only_its_sn_gets_a_tunnel(net):
    def ask(node: str, alpn: str) -> bytes:
        files = net.identity(node)
        return heard(net.sites["alpha"].port, alpn, Path(files.cert), Path(files.key), net.root, GET)

    assert ask("beta/sl/sl", HTTP).startswith(b"HTTP/1.1 200")
    assert ask("beta/sl/sl", P2P) == b""
    assert ask("beta/swci/swci", P2P) == b""
    assert ask("beta/sn/sn", P2P) != b""  # CometBFT's own greeting
