"""SL's file server (`transfer=direct`): peers of the same training contract read parameters from it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import web

from swarm_hpc.config import TransferConfig
from swarm_hpc.errors import BlobNotFound, NotAuthorized
from swarm_hpc.identity.certs import Identity
from swarm_hpc.records import Kind, NodeName
from swarm_hpc.transport.blobs import BlobStore, add_blob_routes
from swarm_hpc.transport.line import advertised
from swarm_hpc.transport.server import Handler, application, peer, serve

_AUDITORS: Final = frozenset({Kind.SN, Kind.SWCI})


class Readers:
    """Who may read which blobs."""

    def __init__(self) -> None:
        self.ask_sites: Callable[[], Awaitable[frozenset[str]]] | None = None
        """Asks the ledger for the sites anew: one may just have joined."""
        self.sites: frozenset[str] = frozenset()
        """Sites that take part in the contract."""
        self.blobs: set[str] = set()
        """Blobs that belong to the contract; the store may hold others, of an earlier one."""

    async def expect(self, site: str) -> None:
        """Ask the ledger about a site that is not known to take part."""
        if site not in self.sites and self.ask_sites is not None:
            self.sites = await self.ask_sites()

    def may_read(self, peer: NodeName, blob: str) -> None:
        """NotAuthorized unless the peer is an SL of a site in the contract, or audits; BlobNotFound."""
        if peer.kind not in _AUDITORS and not (peer.kind is Kind.SL and peer.site in self.sites):
            raise NotAuthorized(f"{peer} may not read blobs here: its site does not take part in the training contract")
        if blob not in self.blobs:
            raise BlobNotFound(f"this SL has no blob {blob} of its training contract")


@asynccontextmanager
async def serving(
    identity: Identity, transfer: TransferConfig, store: BlobStore, readers: Readers
) -> AsyncIterator[str]:
    """Serve the store's blobs; yields the endpoint, host:port, that peers are told."""

    @web.middleware
    async def expect_peer(request: web.Request, handler: Handler) -> web.StreamResponse:
        await readers.expect(peer(request).site)
        return await handler(request)

    app = application()
    app.middlewares.append(expect_peer)
    add_blob_routes(app, store, may_read=readers.may_read, may_write=None)
    async with serve(app, identity, transfer.host, transfer.port) as port:
        yield endpoint_of(transfer, port)


def endpoint_of(transfer: TransferConfig, port: int) -> str:
    """The endpoint to tell peers: `advertise`, completed by the port where it names none. ConfigError: no address."""
    return advertised(transfer.host, transfer.advertise, port, "transfer.")
