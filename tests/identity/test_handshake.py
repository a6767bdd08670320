"""Both sides check names inside the handshake, over real sockets; the same certificates would satisfy plain ssl."""

import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from swarm_hpc.errors import NotAuthorized, WrongSite
from swarm_hpc.identity.certs import peer_name
from swarm_hpc.identity.handshake import HTTP, P2P, CheckedSocket, Refused
from swarm_hpc.records import NodeName


def anyone(name):
    pass


def shake(server_context, client_context):
    """Both ends of a handshake over loopback TCP: each the TLS socket, or the error."""

    def end(context, sock, server_side):
        sock.settimeout(10)
        try:
            return context.wrap_socket(sock, server_side=server_side)
        except OSError as exc:
            sock.close()
            return exc

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
        serving = pool.submit(end, server_context, accepted, True)
        client_end = end(client_context, client, False)
        return serving.result(10), client_end


def close(*ends):
    for end in ends:
        if not isinstance(end, Exception):
            end.close()


def plain(config, protocol):
    """What one would write with ssl alone: the same certificate, all sites' CAs, no further check."""
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(config.cert, config.key)
    for site in ("alpha", "beta"):
        context.load_verify_locations(Path(config.bundle).parent / site / "ca.pem")
    return context


def test_each_side_learns_the_others_name(sites):
    sn, sl = sites.identity("alpha/sn/sn"), sites.identity("beta/sl/sl-1")
    server, client = shake(sn.server_context(anyone), sl.client_context(anyone))
    assert (peer_name(server), peer_name(client)) == (NodeName.parse("beta/sl/sl-1"), NodeName.parse("alpha/sn/sn"))
    assert client.version() == "TLSv1.3"
    close(server, client)


def test_a_server_refuses_a_client_that_another_sites_ca_vouches_for(sites):
    forged = sites.forged("beta", uris=["spiffe://swarm.test/alpha/sl/sl-1"])
    sn, attacker = sites.identity("alpha/sn/sn"), sites.unchecked(forged, "alpha/sl/sl-1")
    server, client = shake(sn.server_context(anyone), attacker.client_context(anyone))
    assert isinstance(server, Refused) and isinstance(server.error, WrongSite)
    close(client)


def test_a_client_refuses_a_server_that_another_sites_ca_vouches_for(sites):
    forged = sites.forged("beta", uris=["spiffe://swarm.test/alpha/sn/sn"])
    attacker, sl = sites.unchecked(forged, "alpha/sn/sn"), sites.identity("alpha/sl/sl-1")
    server, client = shake(attacker.server_context(anyone), sl.client_context(anyone))
    assert isinstance(client, Refused) and isinstance(client.error, WrongSite)
    close(server)


def test_plain_ssl_would_accept_the_very_same_certificates(sites):
    good = sites.config("alpha/sn/sn")
    forged = sites.forged("beta", uris=["spiffe://swarm.test/alpha/sl/sl-1"])
    server, client = shake(plain(good, ssl.PROTOCOL_TLS_SERVER), plain(forged, ssl.PROTOCOL_TLS_CLIENT))
    assert isinstance(server, ssl.SSLSocket) and isinstance(client, ssl.SSLSocket)
    close(server, client)


def test_authorize_decides_inside_the_handshake(sites):
    def nobody(name):
        raise NotAuthorized(f"{name} is not welcome")

    sn, sl = sites.identity("alpha/sn/sn"), sites.identity("beta/sl/sl-1")
    server, client = shake(sn.server_context(nobody), sl.client_context(anyone))
    assert isinstance(server, Refused) and str(server.error) == "beta/sl/sl-1 is not welcome"
    close(client)


def test_a_context_used_around_the_check_verifies_nobody(sites):
    """The inner contexts carry the certificate; without a NodeContext their sockets refuse to shake hands."""
    sn, sl = sites.identity("alpha/sn/sn"), sites.identity("beta/sl/sl-1")
    server, client = shake(sn._pair.server, sl.client_context(anyone))
    assert isinstance(server, ssl.SSLError) and "nobody would check the peer" in str(server)
    close(client)


def test_a_plain_socket_has_no_checked_peer(sites):
    good = sites.config("alpha/sn/sn")
    server, client = shake(plain(good, ssl.PROTOCOL_TLS_SERVER), plain(good, ssl.PROTOCOL_TLS_CLIENT))
    assert not isinstance(server, CheckedSocket)
    with pytest.raises(NotAuthorized, match="no checked peer"):
        peer_name(server)
    close(server, client)


def test_no_session_can_be_taken_up_again(sites):
    sn, sl = sites.identity("alpha/sn/sn"), sites.identity("beta/sl/sl-1")
    server, client = shake(sn.server_context(anyone), sl.client_context(anyone))
    server.sendall(b"x")
    assert client.recv(1) == b"x"
    assert not client.session.has_ticket
    close(server, client)


@pytest.mark.parametrize("alpn", [HTTP, P2P])
def test_the_client_chooses_the_protocol(sites, alpn):
    sn, sl = sites.identity("alpha/sn/sn"), sites.identity("beta/sl/sl-1")
    server, client = shake(sn.server_context(anyone), sl.client_context(anyone, alpn=alpn))
    assert (server.selected_alpn_protocol(), client.selected_alpn_protocol()) == (alpn, alpn)
    close(server, client)


def test_a_client_asks_for_http_unless_told_otherwise(sites):
    sn, sl = sites.identity("alpha/sn/sn"), sites.identity("beta/sl/sl-1")
    server, client = shake(sn.server_context(anyone), sl.client_context(anyone))
    assert client.selected_alpn_protocol() == HTTP
    close(server, client)


def test_names_are_checked_whatever_the_protocol(sites):
    forged = sites.forged("beta", uris=["spiffe://swarm.test/alpha/sn/sn"])
    sn, attacker = sites.identity("alpha/sn/sn"), sites.unchecked(forged, "alpha/sn/sn")
    server, client = shake(sn.server_context(anyone), attacker.client_context(anyone, alpn=P2P))
    assert isinstance(server, Refused) and isinstance(server.error, WrongSite)
    close(client)
    server, client = shake(attacker.server_context(anyone), sn.client_context(anyone, alpn=P2P))
    assert isinstance(client, Refused) and isinstance(client.error, WrongSite)
    close(server)
