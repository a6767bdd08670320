"""The table of seats: never more than are licensed, and none for ever."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_hpc.errors import LicenseError
from swarm_hpc.license.state import Seats
from tests.license.conftest import seat, terms

TODAY = datetime(2027, 1, 31, tzinfo=UTC)
NODES = [f"alpha/sl/{name}" for name in "abcdefgh"]


def acquire(seats: Seats, node: str, now: float = 0.0, *, of: int = 5, **asked: object) -> bool:
    return seats.acquire(seat(node, **asked), terms(seats=of), now, TODAY)  # type: ignore[arg-type]


@pytest.fixture
def seats() -> Seats:
    return Seats(lease_s=10)


def test_of_eight_nodes_five_get_a_seat_and_the_others_are_told_who_has_them(seats: Seats) -> None:
    for node in NODES[:5]:
        assert acquire(seats, node)
    for node in NODES[5:]:
        with pytest.raises(LicenseError) as refusal:
            acquire(seats, node)
    assert str(refusal.value) == (
        "5 of 5 seats are taken (by alpha/sl/a, alpha/sl/b, alpha/sl/c, alpha/sl/d, alpha/sl/e); wait until one is "
        "free, or ask ada@lung.example for more"
    )


def test_the_same_node_and_instance_has_the_same_seat(seats: Seats) -> None:
    assert acquire(seats, NODES[0], of=1)
    assert not acquire(seats, NODES[0], 9, of=1)
    assert seats.used == 1
    assert seats.expire(18) == ()
    with pytest.raises(LicenseError):
        acquire(seats, NODES[0], 18, of=1, instance="two")


def test_a_silent_node_s_seat_is_free_after_the_lease(seats: Seats) -> None:
    acquire(seats, NODES[0], of=1)
    seats.renew(NODES[0], "one", 5)
    with pytest.raises(LicenseError, match="1 of 1 seats are taken"):
        acquire(seats, NODES[1], 14.9, of=1)
    assert acquire(seats, NODES[1], 15, of=1)
    with pytest.raises(LicenseError, match="alpha/sl/a has no seat: it was not heard of for 10 s"):
        seats.renew(NODES[0], "one", 15)


def test_a_job_takes_a_seat_per_rank_or_none(seats: Seats) -> None:
    acquire(seats, NODES[0], num_seats=3)
    with pytest.raises(LicenseError, match=r"3 of 5 seats.*, and alpha/sl/b asks for 3; wait until"):
        acquire(seats, NODES[1], num_seats=3)
    with pytest.raises(LicenseError, match=r"asks for 6; ask ada"):
        acquire(seats, NODES[1], num_seats=6)
    assert acquire(seats, NODES[0], num_seats=5)
    assert seats.used == 5
    assert seats.release(NODES[0], "one")
    assert not seats.release(NODES[0], "one")
    assert seats.used == 0


def test_what_is_not_licensed_is_refused(seats: Seats) -> None:
    with pytest.raises(
        LicenseError, match=r"licence lung is for training, not for merge; ask ada@lung\.example for it"
    ):
        acquire(seats, NODES[0], feature="merge")


def test_after_a_restart_all_have_their_seats_and_a_fresh_lease(seats: Seats) -> None:
    acquire(seats, NODES[0], num_seats=4)
    again = Seats(lease_s=10)
    again.restart(seats.taken, 100)
    assert again.taken == seats.taken
    with pytest.raises(LicenseError):
        acquire(again, NODES[1], 109, num_seats=2)
    assert acquire(again, NODES[1], 110, num_seats=2)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["acquire", "renew", "release", "restart"]),
        st.sampled_from(NODES),
        st.sampled_from(["one", "two"]),
        st.integers(1, 4),
        st.floats(0, 8),
    ),
    max_size=40,
)


@given(steps=STEPS, licensed=st.integers(1, 6))
def test_never_more_seats_than_licensed_and_a_refusal_means_that_they_are_taken(steps, licensed: int) -> None:
    seats, now = Seats(lease_s=10), 0.0
    heard: dict[tuple[str, str], float] = {}
    for what, node, instance, num_seats, pause in steps:
        now += pause
        key = (node, instance)
        if what == "acquire":
            try:
                acquire(seats, node, now, of=licensed, num_seats=num_seats, instance=instance)
                heard[key] = now
            except LicenseError:
                own = sum(one.num_seats for one in seats.taken if (one.node, one.instance) == key)
                assert seats.used - own + num_seats > licensed
        elif what == "renew" and key in heard:
            try:
                seats.renew(node, instance, now)
                heard[key] = now
            except LicenseError:
                assert now - heard.pop(key) >= 10
        elif what == "release":
            seats.release(node, instance)
            heard.pop(key, None)
        elif what == "restart":
            seats.restart(seats.taken, now)
            heard = {(one.node, one.instance): now for one in seats.taken}
        assert seats.used <= licensed
    alive = {key for key, at in heard.items() if now - at < 10}
    assert alive <= {(one.node, one.instance) for one in seats.taken}
    seats.expire(now + 10)
    assert seats.taken == ()
