"""Parameter files addressed by their BLAKE3 hash: what other parts use of store.py, routes.py and transfer.py."""

from swarm_hpc.transport.routes import add_blob_routes
from swarm_hpc.transport.store import BLOCK_BYTES, BlobStore, BlobWriter, blob_name, hash_bytes, hasher
from swarm_hpc.transport.transfer import HashingSink, Sink, download, upload

__all__ = [
    "BLOCK_BYTES",
    "BlobStore",
    "BlobWriter",
    "HashingSink",
    "Sink",
    "add_blob_routes",
    "blob_name",
    "download",
    "hash_bytes",
    "hasher",
    "upload",
]
