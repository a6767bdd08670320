"""A network per site on this host: its cluster in a network namespace, and a veth pair from there to this host.

The site's SN listens at this host's end. The namespace has a route to nothing but that end, so that neither another
site's SN nor another site's cluster can be reached from it, although all are on one host.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Network
from typing import Final

from tests.lab.slurm import which

COMMAND_S: Final = 30.0
PROGRAMS: Final = ("ip", "nsenter")
# RFC 2544: set aside for tests, so that no other route leads there.
ADDRESSES: Final = IPv4Network("198.18.0.0/15")
INNER: Final = "veth0"


@cache
def find_namespaces() -> str | None:
    """Why there are no network namespaces here; None where there are."""
    if missing := [name for name in PROGRAMS if which(name) is None]:
        return f"no {', '.join(missing)} here: run scripts/install_slurm.sh"
    try:
        with site_networks("probe") as made:
            _run(*made["probe"].launcher, "true")
    except subprocess.CalledProcessError as exc:
        return f"no network namespaces here, which need root: {' '.join(exc.cmd)}: {exc.stderr.strip()}"
    return None


@dataclass(frozen=True)
class SiteNetwork:
    """One site's network, up."""

    namespace: str
    service_address: str
    """This host's end, where the cluster reaches the site's SN."""
    cluster_address: str
    """The cluster's end."""

    @property
    def launcher(self) -> tuple[str, ...]:
        """The first words of a command that runs in the site's network."""
        # Not `ip netns exec`: it mounts a /sys of its own, in which slurmd finds no cgroups.
        return _program("nsenter"), f"--net=/run/netns/{self.namespace}"

    def pids(self) -> set[int]:
        """Every process in the site's network."""
        return {int(pid) for pid in _ip("netns", "pids", self.namespace).split()}


@contextmanager
def site_networks(*sites: str) -> Iterator[dict[str, SiteNetwork]]:
    """A network per site; at the end none is left, nor any process in it. CalledProcessError: not permitted here."""
    subnets = _free_subnets(len(sites))
    with ExitStack() as stack:
        yield {
            site: stack.enter_context(_site_network(f"swarm-{os.getpid()}-{site}", f"veth{os.getpid()}-{at}", subnet))
            for at, (site, subnet) in enumerate(zip(sites, subnets, strict=True))
        }


@contextmanager
def _site_network(namespace: str, link: str, subnet: IPv4Network) -> Iterator[SiteNetwork]:
    service, cluster = map(str, subnet.hosts())
    network = SiteNetwork(namespace, service, cluster)
    with ExitStack() as stack:
        _ip("netns", "add", namespace)
        stack.callback(_ip, "netns", "delete", namespace)
        _ip("link", "add", link, "type", "veth", "peer", "name", INNER, "netns", namespace)
        stack.callback(_ip, "link", "delete", link)
        for inside, device, address in ((), link, service), (("-netns", namespace), INNER, cluster):
            _ip(*inside, "address", "add", f"{address}/{subnet.prefixlen}", "dev", device)
            _ip(*inside, "link", "set", device, "up")
        _ip("-netns", namespace, "link", "set", "lo", "up")
        stack.callback(_kill_all, network)
        yield network


def _kill_all(network: SiteNetwork) -> None:
    for pid in network.pids():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _free_subnets(count: int) -> list[IPv4Network]:
    """Subnets of which this host has no address."""
    used = _ip("-4", "-oneline", "address").split()
    free = [one for one in ADDRESSES.subnets(new_prefix=30) if f"{one[1]}/{one.prefixlen}" not in used]
    return random.sample(free, count)


def _ip(*words: str) -> str:
    return _run(_program("ip"), *words)


def _program(name: str) -> str:
    found = which(name)
    assert found is not None
    return found


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMMAND_S).stdout
