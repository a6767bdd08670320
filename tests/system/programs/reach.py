"""Prints, as JSON, the node it runs on and those of the given addresses that accept a connection."""

import json
import os
import socket
import sys

PATIENCE_S = 5.0


def accepts(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), PATIENCE_S).close()
    except OSError:
        return False
    return True


reached = [address for address in sys.argv[1:] if accepts(address)]
sys.stdout.write(json.dumps([os.environ.get("SLURMD_NODENAME"), reached]) + "\n")
