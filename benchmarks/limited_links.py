"""Hosts on this host: network namespaces with one link each to a common switch, as fast as is asked for."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Final

COMMAND_S: Final = 30.0
# RFC 2544: set aside for measurements, so that no other route leads there.
SUBNET: Final = IPv4Network("198.19.77.0/24")
INNER: Final = "eth0"
"""Each host's device, in its namespace."""
# tc-tbf(8): how long a packet may wait for the link, and what it sends at once: some of segmentation's 64 KiB packets
_LATENCY: Final = "25ms"
_BURST: Final = "256kb"


@dataclass(frozen=True)
class Host:
    """A namespace that is up."""

    namespace: str
    address: str

    @property
    def launcher(self) -> tuple[str, ...]:
        """The first words of a command that runs there."""
        return "nsenter", f"--net=/run/netns/{self.namespace}"


@contextmanager
def switched(count: int, rate_mbit: int) -> Iterator[tuple[str, list[Host]]]:
    """Address of this host on the switch, and `count` hosts; each can send and receive `rate_mbit` Mbit/s at a time.

    At the end none is left, nor any process there. CalledProcessError: not permitted here (it takes root), or a
    program of iproute2 is missing.
    """
    mine = os.getpid()
    bridge = f"sw{mine}"
    here, *others = map(str, SUBNET.hosts())
    with ExitStack() as stack:
        _run("ip", "link", "add", bridge, "type", "bridge")
        stack.callback(_run, "ip", "link", "delete", bridge)
        _run("ip", "address", "add", f"{here}/{SUBNET.prefixlen}", "dev", bridge)
        _run("ip", "link", "set", bridge, "up")
        hosts = []
        for number, address in zip(range(count), others, strict=False):
            host = Host(f"bench-{mine}-{number}", address)
            hosts.append(stack.enter_context(_linked(host, f"sw{mine}-{number}", bridge, rate_mbit)))
        yield here, hosts


@contextmanager
def _linked(host: Host, outer: str, bridge: str, rate_mbit: int) -> Iterator[Host]:
    inside = ("ip", "-netns", host.namespace)
    with ExitStack() as stack:
        _run("ip", "netns", "add", host.namespace)
        stack.callback(_run, "ip", "netns", "delete", host.namespace)
        _run("ip", "link", "add", outer, "type", "veth", "peer", "name", INNER, "netns", host.namespace)
        stack.callback(_run, "ip", "link", "delete", outer)
        _run(*inside, "address", "add", f"{host.address}/{SUBNET.prefixlen}", "dev", INNER)
        _run("ip", "link", "set", outer, "master", bridge)
        limit = ("root", "tbf", "rate", f"{rate_mbit}mbit", "burst", _BURST, "latency", _LATENCY)
        _run("tc", "qdisc", "add", "dev", outer, *limit)
        _run("tc", "-netns", host.namespace, "qdisc", "add", "dev", INNER, *limit)
        for device in ("lo", INNER):
            _run(*inside, "link", "set", device, "up")
        _run("ip", "link", "set", outer, "up")
        stack.callback(_kill_all, host)
        yield host


def _kill_all(host: Host) -> None:
    for pid in _run("ip", "netns", "pids", host.namespace).split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMMAND_S).stdout
