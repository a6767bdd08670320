"""Bytes between two sites' CometBFTs through real TLS: both ways, back-pressure, and all the ways to end or fail."""

import asyncio
import hashlib
import logging
import random
import socket
import ssl
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest

from swarm_hpc.errors import NotAuthorized
from swarm_hpc.identity.handshake import P2P
from swarm_hpc.transport import door, server, tunnel
from swarm_hpc.transport.tunnel import Tunnels

MIB = 1 << 20


class Comet:
    """What listens where CometBFT would: each test says what it does with a connection."""

    def __init__(self, serve) -> None:
        self._serve = serve
        self.address: tuple[str, int] | None = None
        self.num_taken = 0
        self._talks: set[asyncio.Task] = set()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        self.address = self._server.sockets[0].getsockname()
        return self

    async def __aexit__(self, *exc):
        self.address = None
        self._server.close()
        for talk in self._talks:
            talk.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)

    async def _take(self, reader, writer):
        self.num_taken += 1
        self._talks.add(asyncio.current_task())
        with suppress(asyncio.CancelledError):
            await self._serve(reader, writer)
        writer.transport.abort()


async def echo(reader, writer):
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


class Site:
    """One site's SN: its tunnels and its port; `comet` is where its CometBFT listens, if it runs."""

    def __init__(self, identity, addresses) -> None:
        self.comet: Comet | None = None
        self.refused: set[str] = set()
        self.tunnels = Tunnels(
            identity, address_of=addresses.get, admit=self._admit, target=lambda: self.comet and self.comet.address
        )

    def _admit(self, name):
        if name.site in self.refused:
            raise NotAuthorized(f"site {name.site} is no member")


class Sns:
    """SNs on free ports of 127.0.0.1, which find each other in `addresses`."""

    def __init__(self, sites, stack) -> None:
        self._sites, self._stack = sites, stack
        self.addresses: dict[str, str] = {}

    async def start(self, name, *, port=0, comet=None) -> Site:
        identity = self._sites.identity(name)
        site = Site(identity, self.addresses)
        if comet is not None:
            site.comet = await self._stack.enter_async_context(Comet(comet))
        listening = server.listen(identity, "127.0.0.1", port, tunnel=site.tunnels)
        reception = await self._stack.enter_async_context(listening)
        await self._stack.enter_async_context(site.tunnels)
        self.addresses[name.split("/")[0]] = f"127.0.0.1:{reception.port}"
        return site


@pytest.fixture
async def sns(sites):
    async with AsyncExitStack() as stack:
        yield Sns(sites, stack)


@asynccontextmanager
async def dialled(site, to):
    """A connection as this site's CometBFT makes it to another site's."""
    reader, writer = await asyncio.open_connection("127.0.0.1", await site.tunnels.local_port(to))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def ended(reader) -> bytes:
    """All that still comes before the connection ends."""
    try:
        return await reader.read()
    except ConnectionError:
        return b""


async def until(condition):
    """Wait for what another task is about to do; the test's own time limit ends a wait in vain."""
    while not condition():
        await asyncio.sleep(0.005)


async def failing(site, to) -> str:
    """The reason of a connection that must fail."""
    async with dialled(site, to) as (reader, writer):
        writer.write(b"hello")
        assert await ended(reader) == b""
    await until(lambda: site.tunnels.failure(to))
    return site.tunnels.failure(to)


async def works(site, to) -> bool:
    async with dialled(site, to) as (reader, writer):
        writer.write(b"hello")
        return await reader.readexactly(5) == b"hello"


async def test_megabytes_travel_both_ways_at_once(sns):
    alpha = await sns.start("alpha/sn/sn")
    await sns.start("beta/sn/sn", comet=echo)
    data = random.Random(1).randbytes(8 * MIB)
    async with dialled(alpha, "beta") as (reader, writer):
        writer.write(data)
        assert hashlib.sha256(await reader.readexactly(len(data))).digest() == hashlib.sha256(data).digest()
        assert alpha.tunnels.connections() == {"beta": 1}
        assert alpha.tunnels.failure("beta") is None


async def test_each_site_reaches_the_other_over_many_connections(sns):
    alpha, beta = await sns.start("alpha/sn/sn", comet=echo), await sns.start("beta/sn/sn", comet=echo)
    pairs = [(alpha, "beta"), (beta, "alpha")] * 5
    assert all(await asyncio.gather(*(works(site, to) for site, to in pairs)))
    assert await alpha.tunnels.local_port("beta") == await alpha.tunnels.local_port("beta")


async def test_the_side_that_is_dialled_may_speak_first(sns):
    async def greet(reader, writer):
        writer.write(b"hello")
        await reader.read()

    alpha = await sns.start("alpha/sn/sn")
    await sns.start("beta/sn/sn", comet=greet)
    async with dialled(alpha, "beta") as (reader, _):
        assert await reader.readexactly(5) == b"hello"


async def test_what_was_sent_before_a_connection_ends_still_arrives(sns):
    data = random.Random(2).randbytes(3 * MIB)

    async def send(reader, writer):
        writer.write(data)
        writer.close()
        await writer.wait_closed()

    alpha = await sns.start("alpha/sn/sn")
    beta = await sns.start("beta/sn/sn", comet=send)
    async with dialled(alpha, "beta") as (reader, _):
        assert await ended(reader) == data
    await until(lambda: not alpha.tunnels.connections() and not beta.tunnels.connections())


async def test_a_half_closed_connection_ends_as_a_whole(sns):
    alpha = await sns.start("alpha/sn/sn")
    beta = await sns.start("beta/sn/sn", comet=echo)
    async with dialled(alpha, "beta") as (reader, writer):
        writer.write(b"hello")
        await reader.readexactly(5)
        writer.write_eof()
        assert await ended(reader) == b""
    await until(lambda: not alpha.tunnels.connections() and not beta.tunnels.connections())


@pytest.mark.slow
async def test_a_reader_that_stops_makes_the_writer_wait_and_no_memory_grow(sns):
    read = asyncio.Event()
    size, got = 64 * MIB, hashlib.sha256()

    async def stop_and_go(reader, writer):
        await read.wait()
        for _ in range(size // MIB):
            got.update(await reader.readexactly(MIB))
        writer.write(b"done")
        await writer.drain()

    alpha = await sns.start("alpha/sn/sn")
    beta = await sns.start("beta/sn/sn", comet=stop_and_go)
    block = random.Random(3).randbytes(MIB)

    async def send(writer):
        for _ in range(size // MIB):
            writer.write(block)
            await writer.drain()

    async with dialled(alpha, "beta") as (reader, writer):
        sending = asyncio.create_task(send(writer))
        await until(alpha.tunnels.connections)
        (out,) = alpha.tunnels._outbound
        # The last one to stop is the first of the chain: whatever comes after it is full.
        await until(lambda: not out.near.transport.is_reading())
        (into,) = beta.tunnels._inbound
        ends = (out.near, out.far, into.near, into.far)
        assert sum(end.transport.get_write_buffer_size() for end in ends) < 4 * MIB
        assert not sending.done()
        read.set()
        assert await reader.readexactly(4) == b"done"
        await sending
    assert got.digest() == hashlib.sha256(block * (size // MIB)).digest()


async def test_a_reader_that_never_reads_again_is_given_up(sns, monkeypatch):
    monkeypatch.setattr("swarm_hpc.transport.joint.STALL_S", 0.1)

    async def stuck(reader, writer):
        writer.transport.pause_reading()
        await asyncio.Event().wait()

    alpha = await sns.start("alpha/sn/sn")
    beta = await sns.start("beta/sn/sn", comet=stuck)
    async with dialled(alpha, "beta") as (reader, writer):
        writer.write(bytes(64 * MIB))
        assert await ended(reader) == b""
    await until(lambda: not alpha.tunnels._outbound and not beta.tunnels._inbound)


async def test_a_site_that_is_down_is_named_and_reached_again_by_the_next_connection(sns, caplog):
    caplog.set_level(logging.INFO, logger="swarm_hpc.transport.tunnel")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    sns.addresses["beta"] = f"127.0.0.1:{port}"
    alpha = await sns.start("alpha/sn/sn")
    for _ in range(2):
        reason = await failing(alpha, "beta")
        assert f"127.0.0.1:{port}" in reason and "Connection refused" in reason
    assert [record.getMessage() for record in caplog.records] == [f"no tunnel to site beta: {reason}"], "logged once"
    await sns.start("beta/sn/sn", port=port, comet=echo)
    assert await works(alpha, "beta")
    await until(lambda: alpha.tunnels.failure("beta") is None)


async def test_a_site_that_never_answers_is_given_up(sns, monkeypatch):
    monkeypatch.setattr(tunnel, "CONNECT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        sns.addresses["beta"] = f"127.0.0.1:{silent.getsockname()[1]}"
        alpha = await sns.start("alpha/sn/sn")
        assert "no connection within 0.1 s" in await failing(alpha, "beta")


async def test_a_site_that_is_no_member_has_no_address(sns):
    alpha = await sns.start("alpha/sn/sn")
    assert await failing(alpha, "delta") == "delta has no address: it is no member"


async def test_an_address_that_is_none_is_named(sns):
    sns.addresses["beta"] = "beta host:1"
    assert "is no address" in await failing(await sns.start("alpha/sn/sn"), "beta")


async def test_another_site_at_the_address_is_refused(sns):
    alpha = await sns.start("alpha/sn/sn", comet=echo)
    sns.addresses["beta"] = sns.addresses["alpha"]
    reason = await failing(alpha, "beta")
    assert "alpha/sn/sn answers there, not sn of site beta: is it the right address?" in reason
    assert alpha.comet.num_taken == 0


async def test_a_node_of_another_kind_at_the_address_is_refused(sns):
    alpha = await sns.start("alpha/sn/sn")
    await sns.start("beta/sl/sl-1", comet=echo)
    assert "beta/sl/sl-1 answers there, not sn of site beta" in await failing(alpha, "beta")


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, logger="swarm_hpc.transport")
    return caplog


async def test_an_sl_gets_no_tunnel_in(sns, log):
    alpha = await sns.start("alpha/sn/sn", comet=echo)
    intruder = await sns.start("beta/sl/sl-1")
    reason = await failing(intruder, "alpha")
    assert "closed the connection right after the TLS handshake" in reason and "beta/sl/sl-1" in reason
    assert "refused a tunnel from beta/sl/sl-1: tunnels are for nodes of kind sn" in log.text
    assert alpha.comet.num_taken == 0


async def test_a_site_that_is_not_admitted_gets_no_tunnel_in_and_is_logged_once_a_minute(sns, log, monkeypatch):
    alpha, beta = await sns.start("alpha/sn/sn", comet=echo), await sns.start("beta/sn/sn")
    alpha.refused.add("beta")
    for _ in range(3):
        await failing(beta, "alpha")
    assert log.text.count("refused a tunnel from beta/sn/sn: site beta is no member") == 1
    monkeypatch.setattr(tunnel, "QUIET_S", 0.0)
    await failing(beta, "alpha")
    assert log.text.count("refused a tunnel from beta/sn/sn: site beta is no member") == 2
    alpha.refused.clear()
    assert alpha.comet.num_taken == 0
    assert await works(beta, "alpha")


async def test_a_ca_that_is_in_no_bundle_is_refused(sns, sites, log):
    alpha = await sns.start("alpha/sn/sn", comet=echo)
    identity = sites.identity("gamma/sn/sn", bundle=sites.bundle_of("alpha", "beta", "gamma"))
    async with Site(identity, sns.addresses).tunnels as tunnels:
        reader, writer = await asyncio.open_connection("127.0.0.1", await tunnels.local_port("alpha"))
        writer.write(b"hello")
        assert await ended(reader) == b""
        writer.transport.abort()
        await until(lambda: tunnels.failure("alpha"))
        assert "the peer refused this node's certificate (gamma/sn/sn, unknown ca)" in tunnels.failure("alpha")
    assert "CertificateUntrusted" in log.text
    assert alpha.comet.num_taken == 0


async def test_a_client_without_certificate_is_refused(sns, sites, log):
    alpha = await sns.start("alpha/sn/sn", comet=echo)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(sites.cas["alpha"])
    context.set_alpn_protocols([P2P])
    host, port = sns.addresses["alpha"].split(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
    writer.write(b"hello")
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
        await reader.read()
    writer.transport.abort()
    await until(lambda: "CertificateMissing" in log.text)
    assert alpha.comet.num_taken == 0


async def test_a_server_without_tunnels_closes_them(sites, sns, net, log):
    sns.addresses["beta"] = await net.serve(server.application(), sites.identity("beta/sn/sn"))
    alpha = await sns.start("alpha/sn/sn")
    assert "closed the connection right after the TLS handshake" in await failing(alpha, "beta")
    assert "refused a tunnel from alpha/sn/sn: there are none here" in log.text


async def test_a_server_that_does_not_know_the_protocol_is_told_from_a_site_that_is_down(sites, sns):
    identity = sites.identity("beta/sn/sn")
    identity._pair.server.set_alpn_protocols(["http/1.1"])  # an older version
    async with server.serve(server.application(), identity, "127.0.0.1", 0) as port:
        sns.addresses["beta"] = f"127.0.0.1:{port}"
        reason = await failing(await sns.start("alpha/sn/sn"), "beta")
    assert "does not know swarm-p2p: an older version, or a proxy that ends TLS itself" in reason


async def test_without_a_comet_running_a_tunnel_is_closed_at_once_and_works_when_it_runs(sns, log):
    alpha, beta = await sns.start("alpha/sn/sn"), await sns.start("beta/sn/sn")
    assert "its CometBFT is not running" in await failing(alpha, "beta")
    assert "closed a tunnel from site alpha: CometBFT is not running here" in log.text
    async with Comet(echo) as beta.comet:
        assert await works(alpha, "beta")


async def test_a_comet_that_does_not_listen_any_more_is_named(sns, log):
    alpha, beta = await sns.start("alpha/sn/sn"), await sns.start("beta/sn/sn")
    async with Comet(echo) as gone:
        address = gone.address
    beta.comet = gone
    gone.address = address
    await failing(alpha, "beta")
    assert f"closed a tunnel from site alpha: 127.0.0.1:{address[1]}: " in log.text


async def test_cut_ends_the_tunnels_of_one_site_in_both_directions(sns):
    alpha, beta = await sns.start("alpha/sn/sn", comet=echo), await sns.start("beta/sn/sn", comet=echo)
    async with dialled(alpha, "beta") as (out, sending), dialled(beta, "alpha") as (back, sending_back):
        for reader, writer in ((out, sending), (back, sending_back)):
            writer.write(b"hello")
            await reader.readexactly(5)
        assert alpha.tunnels.connections() == {"beta": 2}
        alpha.tunnels.cut("gamma")
        assert alpha.tunnels.connections() == {"beta": 2}
        alpha.tunnels.cut("beta")
        assert alpha.tunnels.connections() == {}
        assert (await ended(out), await ended(back)) == (b"", b"")
    await until(lambda: not beta.tunnels.connections())
    assert await works(alpha, "beta"), "a cut is no lock: address_of and admit decide about what comes next"


async def test_a_tunnel_that_is_still_being_made_is_cut_too(sns):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        sns.addresses["beta"] = f"127.0.0.1:{silent.getsockname()[1]}"
        alpha = await sns.start("alpha/sn/sn")
        async with dialled(alpha, "beta") as (reader, _):
            await until(lambda: alpha.tunnels._outbound)
            alpha.tunnels.cut("beta")
            assert await ended(reader) == b""
        await until(lambda: not alpha.tunnels._outbound)


async def test_close_leaves_no_task_and_no_socket(sns, sites):
    beta = await sns.start("beta/sn/sn", comet=echo)
    back_port = await beta.tunnels.local_port("alpha")
    tasks, sockets = asyncio.all_tasks(), _sockets()
    identity = sites.identity("alpha/sn/sn")
    alpha = Site(identity, sns.addresses)
    async with AsyncExitStack() as stack:
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        sns.addresses["delta"] = f"127.0.0.1:{silent.getsockname()[1]}"
        alpha.comet = await stack.enter_async_context(Comet(echo))
        reception = await stack.enter_async_context(server.listen(identity, "127.0.0.1", 0, tunnel=alpha.tunnels))
        sns.addresses["alpha"] = f"127.0.0.1:{reception.port}"
        out, back, slow = [
            await stack.enter_async_context(dialled(site, to))
            for site, to in ((alpha, "beta"), (beta, "alpha"), (alpha, "delta"))
        ]
        for reader, writer in (out, back):
            writer.write(b"hello")
            await reader.readexactly(5)
        ports = [await alpha.tunnels.local_port(to) for to in ("beta", "delta")]
        await alpha.tunnels.close()
        assert [await ended(reader) for reader, _ in (out, back, slow)] == [b"", b"", b""]
        for port in ports:
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)
    await until(lambda: not beta.tunnels._outbound and not beta.tunnels._inbound)
    await until(lambda: asyncio.all_tasks() <= tasks and _sockets() == sockets)
    assert await beta.tunnels.local_port("alpha") == back_port


async def test_tunnels_count_among_a_sites_connections(sns, monkeypatch, log):
    monkeypatch.setattr(door, "MAX_CONNECTIONS_PER_SITE", 1)
    alpha, beta = await sns.start("alpha/sn/sn", comet=echo), await sns.start("beta/sn/sn")
    async with dialled(beta, "alpha") as (reader, writer):
        writer.write(b"hello")
        await reader.readexactly(5)
        async with dialled(beta, "alpha") as (second, _):
            assert await ended(second) == b""
        assert "site beta has 1 connections" in log.text
    await until(lambda: not alpha.tunnels._inbound)
    assert await works(beta, "alpha"), "a place that became free is given again"


async def test_an_idle_tunnel_is_not_ended_by_the_rule_for_http(sns, monkeypatch):
    monkeypatch.setattr("swarm_hpc.transport.watch.IDLE_S", 0.02)
    alpha = await sns.start("alpha/sn/sn")
    await sns.start("beta/sn/sn", comet=echo)
    async with dialled(alpha, "beta") as (reader, writer):
        for _ in range(3):
            await asyncio.sleep(0.05)  # longer than HTTP would be given
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"


async def test_small_messages_are_sent_at_once(sns):
    alpha = await sns.start("alpha/sn/sn")
    beta = await sns.start("beta/sn/sn", comet=echo)
    async with dialled(alpha, "beta") as (reader, writer):
        writer.write(b"hello")
        await reader.readexactly(5)
        for joint in (*alpha.tunnels._outbound, *beta.tunnels._inbound):
            for end in (joint.near, joint.far):
                sock = end.transport.get_extra_info("socket")
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def _sockets() -> int:
    """How many sockets this process has open."""
    count = 0
    for fd in Path("/proc/self/fd").iterdir():
        try:
            count += str(fd.readlink()).startswith("socket:")
        except OSError:
            continue
    return count
