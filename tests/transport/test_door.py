"""Whom a server refuses before the first byte of HTTP, over real sockets, and what its log says about it."""

import asyncio
import logging
import socket
import ssl
from pathlib import Path

import pytest
from aiohttp import web

from swarm_hpc.errors import IdentityError
from swarm_hpc.identity import certs
from swarm_hpc.transport import door, server


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, logger="swarm_hpc.transport.door")
    return caplog


@pytest.fixture
async def address(sites, net):
    async def never(request):
        raise AssertionError("a refused peer reached a handler")

    app = server.application()
    app.router.add_get("/", never)
    return await net.serve(app, sites.identity("alpha/sn/sn"))


def plain_context(config=None, version=ssl.TLSVersion.TLSv1_3):
    """A client of plain ssl that trusts alpha's CA and checks nothing else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.maximum_version = version
    if config is not None:
        context.load_cert_chain(config.cert, config.key)
    return context


async def talk(address, context, trust: Path) -> bytes | Exception:
    """Connect, send a request, and return what came of it; in a thread, with blocking sockets."""

    def run():
        host, port = address.split(":")
        context.load_verify_locations(trust)
        try:
            with (
                socket.create_connection((host, int(port)), timeout=10) as raw,
                context.wrap_socket(raw, suppress_ragged_eofs=False) as tls,
            ):
                tls.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                return tls.recv(1000)
        except OSError as exc:
            return exc

    return await asyncio.to_thread(run)


async def the_warning(log) -> str:
    """The one warning; it may come a moment after the client has seen the end."""
    async with asyncio.timeout(10):
        while not [one for one in log.records if one.levelno >= logging.WARNING]:
            await asyncio.sleep(0.01)
    (record,) = [one for one in log.records if one.levelno >= logging.WARNING]
    assert record.exc_info is None, "a refusal is no traceback"
    assert record.name == "swarm_hpc.transport.door"
    return record.getMessage()


async def test_a_client_without_certificate_is_told_so_by_an_alert(sites, address, log):
    got = await talk(address, plain_context(), sites.cas["alpha"])
    assert isinstance(got, ssl.SSLError) and "CERTIFICATE_REQUIRED" in str(got)
    assert "refused 127.0.0.1:" in await the_warning(log)
    assert "CertificateMissing: the peer showed no certificate" in log.text


async def test_a_client_of_an_unknown_ca_is_told_so_by_an_alert(sites, address, log):
    got = await talk(address, plain_context(sites.config("gamma/sl/1")), sites.cas["alpha"])
    assert isinstance(got, ssl.SSLError) and "UNKNOWN_CA" in str(got)
    assert "CertificateUntrusted: no CA of the trust bundle signed" in await the_warning(log)


async def test_an_expired_client_is_told_so_by_an_alert(sites, address, log):
    config = sites.forged("alpha", uris=["spiffe://swarm.test/alpha/sl/1"], days=(-9, -2))
    got = await talk(address, plain_context(config), sites.cas["alpha"])
    assert isinstance(got, ssl.SSLError) and "CERTIFICATE_EXPIRED" in str(got)
    assert "CertificateExpired: " in await the_warning(log)


async def test_a_client_that_another_sites_ca_vouches_for_gets_no_byte(sites, address, log):
    config = sites.forged("beta", uris=["spiffe://swarm.test/alpha/sl/1"])
    got = await talk(address, plain_context(config), sites.cas["alpha"])
    assert got == b"" or isinstance(got, OSError)
    message = await the_warning(log)
    assert "WrongSite: spiffe://swarm.test/alpha/sl/1 was signed by the CA of site beta" in message


async def test_a_client_of_an_unknown_kind_gets_no_byte(sites, address, log):
    config = sites.forged("alpha", uris=["spiffe://swarm.test/alpha/king/1"])
    got = await talk(address, plain_context(config), sites.cas["alpha"])
    assert got == b"" or isinstance(got, OSError)
    assert "'king'" in await the_warning(log)


async def test_tls_1_2_is_refused(sites, address, log):
    context = plain_context(sites.config("alpha/sl/1"), ssl.TLSVersion.TLSv1_2)
    got = await talk(address, context, sites.cas["alpha"])
    assert isinstance(got, ssl.SSLError) and "PROTOCOL_VERSION" in str(got)
    assert "does not speak TLS 1.3" in await the_warning(log)


async def test_a_client_that_speaks_no_tls_is_refused(address, log):
    reader, writer = await asyncio.open_connection(*address.split(":"))
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    writer.write_eof()
    assert b"HTTP" not in await reader.read()
    writer.close()
    await writer.wait_closed()


async def test_a_port_check_is_no_warning(address, log):
    _, writer = await asyncio.open_connection(*address.split(":"))
    writer.close()
    await writer.wait_closed()
    async with asyncio.timeout(10):
        while "closed the connection during the TLS handshake" not in log.text:
            await asyncio.sleep(0.01)
    assert not [one for one in log.records if one.levelno >= logging.WARNING]


async def test_a_peer_that_never_shakes_hands_is_dropped(sites, net, log, monkeypatch):
    monkeypatch.setattr(door, "HANDSHAKE_TIMEOUT_S", 0.05)
    address = await net.serve(server.application(), sites.identity("alpha/sn/sn"))
    reader, writer = await asyncio.open_connection(*address.split(":"))
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    assert "no TLS handshake within 0.05 s" in await the_warning(log)


async def test_a_handshake_under_way_does_not_keep_a_server_from_stopping(sites):
    async with server.serve(server.application(), sites.identity("alpha/sn/sn"), "127.0.0.1", 0) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


@pytest.mark.slow
async def test_a_request_that_comes_with_the_end_of_the_handshake_is_answered(sites, net):
    """A blocking client sends its first request in the same moment; many tries, since only some meet it."""

    async def hello(request):
        return web.json_response(str(server.peer(request)))

    app = server.application()
    app.router.add_get("/", hello)
    address = await net.serve(app, sites.identity("alpha/sn/sn"))
    config = sites.config("alpha/sl/1")
    answers = [await talk(address, plain_context(config), sites.cas["alpha"]) for _ in range(20)]
    assert all(isinstance(answer, bytes) and b'"alpha/sl/1"' in answer for answer in answers)


async def test_a_certificate_named_by_dns_connects(sites, net):
    async def hello(request):
        return web.json_response(str(server.peer(request)))

    app = server.application()
    app.router.add_get("/", hello)
    identity = certs.load(sites.forged("alpha", dns=["sn-1.alpha.example"]))
    client = await net.client(certs.load(sites.forged("beta", dns=["SL-7"])), await net.serve(app, identity))
    assert await client.call("GET", "/") == "beta/sl/7"


async def test_certificates_like_hpes_connect_only_where_both_sides_are_lenient(sites, net, log):
    async def hello(request):
        return web.json_response(str(server.peer(request)))

    app = server.application()
    app.router.add_get("/", hello)
    hpe = certs.load(sites.lenient(sites.forged("alpha", dns=["SL-1"], like_hpe=True)))
    lenient = certs.load(sites.lenient(sites.config("alpha/sn/sn")))
    client = await net.client(hpe, await net.serve(app, lenient))
    assert await client.call("GET", "/") == "alpha/sl/1"
    client = await net.client(hpe, await net.serve(app, sites.identity("alpha/sn/sn")))
    with pytest.raises(IdentityError, match="the peer refused this node's certificate"):
        await client.call("GET", "/")
    assert "strict_x509=false" in await the_warning(log)


@pytest.mark.parametrize("is_late", [False, True], ids=["before its handshake began", "when the server has stopped"])
async def test_a_connection_that_comes_while_the_server_stops_is_closed(sites, is_late):
    keeper = door.Doorkeeper(sites.identity("alpha/sn/sn"), asyncio.Protocol)
    ours, theirs = socket.socketpair()
    with ours:
        ours.setblocking(False)
        if is_late:
            await keeper.close()
        # connection_made and close follow one another: no handshake has begun
        made = asyncio.get_running_loop().create_task(
            asyncio.get_running_loop().connect_accepted_socket(keeper, theirs)
        )
        await asyncio.sleep(0)
        await keeper.close()
        await made
        async with asyncio.timeout(10):
            assert await asyncio.get_running_loop().sock_recv(ours, 1) == b""
