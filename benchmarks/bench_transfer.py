"""How fast parameters travel between two processes on this host by mutual TLS 1.3, beside openssl's own tools.

    python benchmarks/bench_transfer.py [--mib 400] [--link-mib 100] [--mbit 1000 4000] [--repeats 5] [--json]

In turn: a download from an SL's file server into memory that is used again, hash verified (as a leader fetches); the
same file from `openssl s_server` by `openssl s_client` into /dev/null, with the same certificates and the cipher that
the first one agreed on. CPU seconds are those of both processes. Then three peers' parameters at once, alone and as a
leader gets them: merged with its own while they arrive, or, by a geometric median, thereafter, hash of the result
included. On one host, whose cores both ends keep busy; and, which takes root, over links of `--mbit` Mbit/s into
another network namespace, which leave a leader the time that it has where its peers are on other hosts. Writes
benchmarks/results/transfer.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from limited_links import Host, switched
from machine import describe, write_results
from models import fill, layout_of
from rich.console import Console
from rich.table import Table

from swarm_hpc.config import ConnectionConfig, IdentityConfig
from swarm_hpc.identity import ca, certs
from swarm_hpc.identity.certs import Identity
from swarm_hpc.kernels.plan import Layout
from swarm_hpc.records import CheckIn, Kind, Merge, MergeMethod, NodeName
from swarm_hpc.sl.merge import merge_blobs
from swarm_hpc.sl.streaming import Stream, can_stream
from swarm_hpc.transport.blobs import Sink
from swarm_hpc.transport.client import expect_kind
from swarm_hpc.transport.store import BlobStore
from swarm_hpc.transport.transfer import download

SERVER = Path(__file__).parent / "programs" / "blob_server.py"
CIPHER = "TLS_AES_256_GCM_SHA384"
"""What OpenSSL's defaults agree on, and therefore both."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=400, help="size of the parameters")
    parser.add_argument("--link-mib", type=int, default=100, help="size of the parameters per Gbit/s of a link")
    parser.add_argument("--mbit", type=int, nargs="+", default=[1000, 4000], help="speeds of links")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON instead of a table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        identity = make_identities(folder)
        store = BlobStore(folder / "store")
        layout = layout_of(options.mib)
        names = [store.put(model(layout, seed)) for seed in range(4)]
        ours, theirs = measure(folder, identity, names[0], layout.size_bytes, options.repeats)
        leading = lead(folder, identity, layout, names, options.repeats)
        for mbit in options.mbit:
            leading += linked(folder, identity, options.link_mib * mbit // 1000, mbit, options.repeats)
    rows = [row("swarm_hpc", ours, options.mib), row("openssl", theirs, options.mib)]
    ratio = statistics.median(them[0] / us[0] for us, them in zip(ours, theirs, strict=True))
    rows += leading
    version = subprocess.run(["openssl", "version"], capture_output=True, text=True, check=True).stdout.strip()
    write_results(
        "transfer", {"machine": describe() | {"openssl": version}, "rows": rows, "times_openssl": round(ratio, 3)}
    )
    print(json.dumps({"rows": rows, "times_openssl": round(ratio, 3)})) if options.json else show(rows, ratio)


def make_identities(folder: Path) -> Identity:
    """A certificate for the server and one for the client, of one site's CA; the client's, loaded."""
    ca.write_bundle({"alpha": ca.create_ca("alpha", "swarm.test", folder / "ca")}, "swarm.test", folder / "bundle.json")
    for name in ("server", "client"):
        cert, key = ca.issue(folder / "ca", NodeName("alpha", Kind.SL, name), folder / "certs")
        shutil.copy(cert, folder / f"{name}.pem")
        shutil.copy(key, folder / f"{name}.key")
    return certs.load(
        IdentityConfig(
            cert=str(folder / "client.pem"), key=str(folder / "client.key"), bundle=str(folder / "bundle.json")
        )
    )


def model(layout: Layout, seed: int) -> bytearray:
    """A blob of normally distributed values."""
    data = bytearray(layout.size_bytes)
    fill(layout, memoryview(data), seed)
    return data


class Peers:
    """What `Stream` asks of an exchange, with all peers at one file server."""

    def __init__(self, identity: Identity, endpoint: str) -> None:
        self._identity, self._endpoint = identity, endpoint

    async def fetch(self, blob: str, buffer: memoryview) -> None:
        await self._download(blob, buffers=[buffer])

    async def stream(self, blob: str, holders: Iterable[str], sink: Sink) -> None:
        await self._download(blob, into=sink)

    async def _download(self, blob: str, **to: Any) -> None:
        expect = expect_kind(Kind.SL)
        await download(self._identity, self._endpoint, blob, expect=expect, connection=ConnectionConfig(), **to)


def linked(folder: Path, identity: Identity, mib: int, mbit: int, repeats: int) -> list[dict[str, Any]]:
    """As `lead`, the peers behind a limited link. None, and a word, where it cannot be made."""
    layout, store = layout_of(mib), BlobStore(folder / "store")
    with ExitStack() as stack:
        try:
            _, [host] = stack.enter_context(switched(1, mbit))
        except (OSError, subprocess.SubprocessError) as exc:
            print(f"no rows of a limited link, which takes root and iproute2: {exc}", file=sys.stderr)
            return []
        names = [store.put(model(layout, seed)) for seed in range(4)]
        rows = lead(folder, identity, layout, names, repeats, host)
    return [row | {"backend": f"{row['backend']}, {mbit} Mbit/s", "mbit": mbit} for row in rows]


def lead(
    folder: Path, identity: Identity, layout: Layout, names: list[str], repeats: int, host: Host | None = None
) -> list[dict[str, Any]]:
    """Rows per method: fetching three blobs, and fetching them and merging them with an own one; in turn."""
    own, *others = names
    blobs = {name: memoryview(bytearray(layout.size_bytes)) for name in names}
    blobs[own][:] = BlobStore(folder / "store").path(own).read_bytes()
    out = memoryview(bytearray(layout.size_bytes))
    check_ins = [CheckIn(node=f"alpha/sl/{number}", blob=name, weight=1) for number, name in enumerate(names)]
    methods = (MergeMethod.MEAN, MergeMethod.COORDMEDIAN, MergeMethod.GEOMEDIAN)
    taken: dict[MergeMethod, list[tuple[float, float]]] = {method: [] for method in methods}
    with our_server(folder, host) as (_, endpoint):
        peers = Peers(identity, endpoint)
        streams = {method: Stream(peers, layout, Merge(method=method)) for method in methods}

        async def fetch() -> None:
            await asyncio.gather(*(peers.fetch(name, blobs[name]) for name in others))

        async def merge(method: MergeMethod) -> None:
            if can_stream(streams[method].method):
                await streams[method].merge(check_ins, {own: blobs[own]}, out, lambda text: None)
            else:
                await fetch()
                merge_blobs(layout, Merge(method=method), check_ins, blobs, out)

        for turn in range(repeats + 1):
            for number in range(len(methods)):
                method = methods[(turn + number) % len(methods)]
                start = time.perf_counter()
                asyncio.run(fetch())
                fetched = time.perf_counter()
                asyncio.run(merge(method))
                if turn:  # the first one touches new memory
                    taken[method].append((fetched - start, time.perf_counter() - fetched))
    mib = 3 * layout.size_bytes >> 20
    return [
        {
            "backend": f"3 peers, {method}",
            "mib": mib,
            "seconds": round(statistics.median(fetch_s for fetch_s, _ in runs), 4),
            "mib_per_s": round(mib / statistics.median(fetch_s for fetch_s, _ in runs), 1),
            "merged_s": round(statistics.median(merged_s for _, merged_s in runs), 4),
            "added_percent": round(100 * statistics.median(merged_s / fetch_s - 1 for fetch_s, merged_s in runs), 1),
        }
        for method, runs in taken.items()
    ]


Run = tuple[float, float]
"""Seconds, and CPU seconds of both sides."""


def measure(folder: Path, identity: Identity, blob: str, size: int, repeats: int) -> tuple[list[Run], list[Run]]:
    buffer = memoryview(bytearray(size))
    ours, theirs = [], []
    with our_server(folder) as server, openssl_server(folder) as (their_pid, port):
        path = BlobStore(folder / "store").path(blob)
        for number in range(repeats + 1):
            us, them = (
                our_run(server, identity, blob, buffer),
                openssl_run(folder, their_pid, port, path, count=number == 0),
            )
            if number:  # the first one fills the page cache
                ours.append(us)
                theirs.append(them)
    return ours, theirs


@contextmanager
def our_server(folder: Path, host: Host | None = None) -> Iterator[tuple[subprocess.Popen[str], str]]:
    launcher, address = (host.launcher, host.address) if host else ((), "127.0.0.1")
    command = [*launcher, sys.executable, str(SERVER), str(folder), address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        yield process, process.stdout.readline().strip()
        process.stdin.close()


def our_run(server: tuple[subprocess.Popen[str], str], identity: Identity, blob: str, buffer: memoryview) -> Run:
    process, endpoint = server
    connection = ConnectionConfig()
    before = server_cpu_s(process) + time.process_time()
    start = time.perf_counter()
    expect = expect_kind(Kind.SL)
    asyncio.run(download(identity, endpoint, blob, expect=expect, connection=connection, buffers=[buffer]))
    taken = time.perf_counter() - start
    return taken, server_cpu_s(process) + time.process_time() - before


def server_cpu_s(process: subprocess.Popen[str]) -> float:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return float(process.stdout.readline())


@contextmanager
def openssl_server(folder: Path) -> Iterator[tuple[int, int]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    files = ["-cert", str(folder / "server.pem"), "-key", str(folder / "server.key"), "-CAfile", str(root(folder))]
    command = ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-WWW", "-quiet", "-tls1_3", *files]
    command += ["-ciphersuites", CIPHER, "-Verify", "3", "-no_ticket"]
    with subprocess.Popen(
        command, cwd=folder / "store", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 20
        while not listens(port):
            if time.monotonic() > deadline:
                raise TimeoutError("openssl s_server does not listen")
            time.sleep(0.05)
        yield process.pid, port
        process.terminate()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def openssl_run(folder: Path, server_pid: int, port: int, path: Path, *, count: bool) -> Run:
    files = ["-cert", str(folder / "client.pem"), "-key", str(folder / "client.key"), "-CAfile", str(root(folder))]
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-quiet", "-tls1_3", *files, "-ign_eof"]
    request = f"GET /{path.relative_to(folder / 'store')} HTTP/1.0\r\n\r\n".encode()
    before = process_cpu_s(server_pid) + children_cpu_s()
    start = time.perf_counter()
    # into a file that takes anything; how much it was, the first run counts
    target = subprocess.PIPE if count else subprocess.DEVNULL
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=target, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        process.stdin.write(request)
        process.stdin.flush()
        arrived = 0
        while process.stdout is not None and (piece := os.read(process.stdout.fileno(), 1 << 20)):
            arrived += len(piece)
        process.wait(timeout=120)
    taken = time.perf_counter() - start
    assert not count or arrived >= path.stat().st_size, f"openssl sent {arrived} bytes"
    return taken, process_cpu_s(server_pid) + children_cpu_s() - before


def process_cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def root(folder: Path) -> Path:
    """The site's CA certificate."""
    return next(path for path in (folder / "ca").iterdir() if b"CERTIFICATE" in path.read_bytes())


def row(backend: str, runs: list[Run], mib: int) -> dict[str, Any]:
    seconds, cpu_s = statistics.median(run[0] for run in runs), statistics.median(run[1] for run in runs)
    return {
        "backend": backend,
        "mib": mib,
        "seconds": round(seconds, 4),
        "mib_per_s": round(mib / seconds, 1),
        "cpu_s_per_gib": round(cpu_s * 1024 / mib, 3),
    }


def show(rows: list[dict[str, Any]], ratio: float) -> None:
    table = Table(title=f"mutual TLS 1.3 on one host: {ratio:.2f} times the speed of openssl's own tools")
    names = ("backend", "mib", "seconds", "mib_per_s", "cpu_s_per_gib", "merged_s", "added_percent")
    for name in names:
        table.add_column(name.replace("_", " "), justify="left" if name == "backend" else "right")
    for one in rows:
        table.add_row(*(str(one.get(name, "")) for name in names))
    Console(file=sys.stdout, width=110).print(table)


if __name__ == "__main__":
    main()
