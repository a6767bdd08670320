"""Rounds as the ledger tells of them."""

from swarm_hpc.records import Round, RoundState


def round_of(number: int, **fields) -> Round:
    """A round of the contract `digits` that nobody has checked in to; `fields`: what is different."""
    usual = {
        "contract": "digits",
        "state": RoundState.OPEN,
        "check_ins": (),
        "num_active": 2,
        "min_peers": 2,
        "closable": False,
        "closes_in_s": None,
        "leader": "",
        "leader_due_in_s": None,
        "replaceable": False,
        "orphaned": False,
        "merged": "",
        "published_at": 0,
    }
    return Round(number=number, **usual | fields)


def published(number: int, merged: str, **fields) -> Round:
    """One that alpha has merged."""
    return round_of(
        number,
        **{"state": RoundState.PUBLISHED, "leader": "alpha/sl/sl", "published_at": 1} | fields | {"merged": merged},
    )
