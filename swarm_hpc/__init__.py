"""Swarm learning for HPC sites: peers train on private data, merge peer to peer, and keep the record on a ledger."""

__version__ = "0.1.0"
