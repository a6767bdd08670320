"""An SL's file server in a process of its own, for bench_transfer.py: prints its endpoint; CPU seconds when asked.

python blob_server.py FOLDER HOST
"""

import asyncio
import sys
import time
from pathlib import Path

from swarm_hpc.config import IdentityConfig, TransferConfig
from swarm_hpc.identity import certs
from swarm_hpc.sl.server import Readers, serving
from swarm_hpc.transport.store import BlobStore


async def main(folder: Path, host: str) -> None:
    identity = certs.load(
        IdentityConfig(
            cert=str(folder / "server.pem"), key=str(folder / "server.key"), bundle=str(folder / "bundle.json")
        )
    )
    store = BlobStore(folder / "store")
    readers = Readers()
    readers.sites = frozenset({"alpha"})
    readers.blobs = set(store.blobs())
    async with serving(identity, TransferConfig(host=host, port=0), store, readers) as endpoint:
        print(endpoint, flush=True)
        # a line: the CPU seconds; the end of input: stop
        while await asyncio.to_thread(sys.stdin.readline):
            print(time.process_time(), flush=True)


asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
