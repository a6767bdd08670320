"""Calls over real sockets: what is repeated, what is not, and how a refusal looks from the client's side."""

import asyncio
import time

import pytest
from aiohttp import web

from swarm_hpc.errors import (
    CertificateExpired,
    CertificateUntrusted,
    IdentityError,
    NotAuthorized,
    NotReachable,
    ProtocolError,
    TimedOut,
    WrongSite,
)
from swarm_hpc.identity import certs
from swarm_hpc.records import Kind
from swarm_hpc.transport import server
from swarm_hpc.transport.client import expect_kind


def app_with(handler, method="GET"):
    app = server.application()
    app.router.add_route(method, "/v1/thing", handler)
    return app


async def ok(request):
    return web.json_response("ok")


async def closed_port() -> int:
    """A port on which nobody listens."""
    listener = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    listener.close()
    await listener.wait_closed()
    return port


@pytest.mark.slow
async def test_nobody_there_is_not_reachable_after_the_connect_timeout(sites, net):
    address = f"127.0.0.1:{await closed_port()}"
    client = await net.client(sites.identity("alpha/sl/1"), address, connect_timeout_s=0.3)
    started = time.monotonic()
    with pytest.raises(NotReachable, match=address):
        await client.call("GET", "/v1/thing")
    assert time.monotonic() - started >= 0.3


async def test_without_retry_the_first_failure_counts(sites, net):
    address = f"127.0.0.1:{await closed_port()}"
    client = await net.client(sites.identity("alpha/sl/1"), address, connect_timeout_s=3600)
    with pytest.raises(NotReachable):
        await client.call("GET", "/v1/thing", retry=False)


async def test_a_call_succeeds_when_the_server_comes_up_late(sites, net):
    """A listener that hangs up proves that the client has tried; then the real server takes its port."""
    tried = asyncio.Event()

    def hang_up(reader, writer):
        tried.set()
        writer.close()

    early = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = early.sockets[0].getsockname()[1]
    client = await net.client(sites.identity("alpha/sl/1"), f"127.0.0.1:{port}", connect_timeout_s=60)
    calling = asyncio.ensure_future(client.call("GET", "/v1/thing"))
    await tried.wait()
    early.close()
    await early.wait_closed()
    await net.serve(app_with(ok), sites.identity("alpha/sn/sn"), port)
    assert await calling == "ok"


async def test_a_post_is_repeated_when_its_connection_breaks_before_the_answer(sites, net):
    seen = []

    async def break_once(request):
        seen.append(await server.body(request))
        if len(seen) == 1:
            request.transport.abort()
        return web.json_response(len(seen))

    client = await net.client(
        sites.identity("alpha/sl/1"), await net.serve(app_with(break_once, "POST"), sites.identity("alpha/sn/sn"))
    )
    assert await client.call("POST", "/v1/thing", body={"n": 1}) == 2
    assert seen == [{"n": 1}, {"n": 1}]


async def test_a_server_that_stays_silent_is_timed_out(sites, net):
    release = asyncio.Event()

    async def hang(request):
        await release.wait()
        return web.json_response("late")

    client = await net.client(
        sites.identity("alpha/sl/1"),
        await net.serve(app_with(hang), sites.identity("alpha/sn/sn")),
        connect_timeout_s=0.01,
    )
    with pytest.raises(TimedOut, match=r"no answer within 0\.2 s"):
        await client.call("GET", "/v1/thing", timeout_s=0.2)
    release.set()


async def test_connections_are_kept_between_calls(sites, net):
    ports = set()

    async def port(request):
        ports.add(request.transport.get_extra_info("peername"))
        return web.json_response("ok")

    client = await net.client(
        sites.identity("alpha/sl/1"), await net.serve(app_with(port), sites.identity("alpha/sn/sn"))
    )
    for _ in range(5):
        await client.call("GET", "/v1/thing", query={"a": 1, "b": 0.5, "c": "x y"})
    assert len(ports) == 1


async def test_an_answer_that_is_no_json_is_a_protocol_error(sites, net):
    async def text(request):
        return web.Response(text="<html>")

    client = await net.client(
        sites.identity("alpha/sl/1"), await net.serve(app_with(text), sites.identity("alpha/sn/sn"))
    )
    with pytest.raises(ProtocolError, match="with no JSON"):
        await client.call("GET", "/v1/thing")


async def test_a_proxys_error_page_is_taken_for_a_lost_server(sites, net):
    answers = [web.Response(status=502, text="<html>Bad Gateway"), web.json_response("ok")]

    async def proxy(request):
        return answers.pop(0)

    client = await net.client(
        sites.identity("alpha/sl/1"), await net.serve(app_with(proxy), sites.identity("alpha/sn/sn"))
    )
    assert await client.call("GET", "/v1/thing") == "ok"


# Refusals. connect_timeout_s is an hour: a refusal that were retried until then would meet the test's own timeout.


async def refused(sites, net, client_identity, server_identity, expect=None) -> IdentityError:
    address = await net.serve(app_with(ok), server_identity)
    client = await net.client(client_identity, address, expect=expect, connect_timeout_s=3600)
    with pytest.raises(IdentityError) as caught:
        await client.call("GET", "/v1/thing")
    assert address in str(caught.value)
    return caught.value


async def test_a_server_that_does_not_know_our_ca_is_not_asked_again(sites, net):
    ours = sites.identity("gamma/sl/sl-1", bundle=sites.bundle_of("alpha", "beta", "gamma"))
    error = await refused(sites, net, ours, sites.identity("alpha/sn/sn"))
    assert type(error) is CertificateUntrusted
    assert (
        "refused this node's certificate (gamma/sl/sl-1, unknown ca): is gamma's CA in that site's trust bundle?"
        in str(error)
    )


async def test_a_server_that_finds_us_expired_is_not_asked_again(sites, net):
    config = sites.forged("alpha", uris=["spiffe://swarm.test/alpha/sl/1"], days=(-9, -2))
    error = await refused(sites, net, sites.unchecked(config, "alpha/sl/1"), sites.identity("alpha/sn/sn"))
    assert type(error) is CertificateExpired and "certificate expired" in str(error)


@pytest.mark.slow
async def test_a_server_that_refuses_our_name_is_given_up_after_a_few_attempts(sites, net):
    """The server finds the wrong site after its TLS handshake: it can only hang up, and the client can only count."""
    config = sites.forged("beta", uris=["spiffe://swarm.test/alpha/sl/1"])
    error = await refused(sites, net, sites.unchecked(config, "alpha/sl/1"), sites.identity("alpha/sn/sn"))
    assert type(error) is NotAuthorized and "it refuses alpha/sl/1, and its log says why" in str(error)


async def test_we_refuse_a_server_that_another_sites_ca_vouches_for(sites, net):
    config = sites.forged("beta", uris=["spiffe://swarm.test/alpha/sn/sn"])
    error = await refused(sites, net, sites.identity("alpha/sl/1"), sites.unchecked(config, "alpha/sn/sn"))
    assert type(error) is WrongSite and "signed by the CA of site beta" in str(error)


async def test_we_refuse_a_server_of_an_unknown_ca(sites, net):
    theirs = sites.identity("gamma/sn/sn", bundle=sites.bundle_of("alpha", "gamma"))
    error = await refused(sites, net, sites.identity("alpha/sl/1"), theirs)
    assert type(error) is CertificateUntrusted and "no CA of the trust bundle signed the certificate" in str(error)


async def test_we_refuse_an_expired_server(sites, net):
    config = sites.forged("alpha", uris=["spiffe://swarm.test/alpha/sn/sn"], days=(-9, -2))
    error = await refused(sites, net, sites.identity("alpha/sl/1"), sites.unchecked(config, "alpha/sn/sn"))
    assert type(error) is CertificateExpired


async def test_we_refuse_a_server_of_another_kind_than_expected(sites, net):
    error = await refused(sites, net, sites.identity("alpha/sl/1"), sites.identity("alpha/ui/ui"))
    assert type(error) is NotAuthorized and "alpha/ui/ui answers there, not sn" in str(error)


async def test_we_refuse_a_server_of_another_site_than_expected(sites, net):
    error = await refused(
        sites, net, sites.identity("alpha/sl/1"), sites.identity("beta/sn/sn"), expect_kind(Kind.SN, site="alpha")
    )
    assert "beta/sn/sn answers there, not sn of site alpha" in str(error)


async def test_a_refused_certificate_that_is_renewed_serves_the_next_connection(sites, net):
    """Each connection asks for the newest certificate: no restart, no new client."""
    config = sites.forged("alpha", uris=["spiffe://swarm.test/alpha/sl/1"], days=(-9, -2))
    ours = sites.unchecked(config, "alpha/sl/1")
    client = await net.client(ours, await net.serve(app_with(ok), sites.identity("alpha/sn/sn")))
    with pytest.raises(CertificateExpired):
        await client.call("GET", "/v1/thing")
    ours._pair = certs.load(sites.config("alpha/sl/1"))._pair
    assert await client.call("GET", "/v1/thing") == "ok"
