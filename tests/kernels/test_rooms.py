"""Where peers' parameters lie in memory."""

import numpy as np

from swarm_hpc.kernels.rooms import Rooms, apart, room

PAGE = 4096


def place_of(view):
    return np.frombuffer(view, np.uint8).ctypes.data % PAGE


def test_sixteen_rooms_have_sixteen_places_in_a_page():
    rooms = [room(1 << 20, number) for number in range(16)]
    assert {len(each) for each in rooms} == {1 << 20}
    assert [place_of(each) for each in rooms] == list(range(0, PAGE, 256))


def test_rooms_in_one_memory_have_different_places_too_and_do_not_overlap():
    for size in (1, 256, PAGE, PAGE + 1, 1 << 20):
        assert apart(size) >= size
        assert apart(size) % PAGE == 256


def test_rooms_that_were_given_back_are_used_again():
    rooms = Rooms(100)
    first, second = rooms.take(), rooms.take()
    assert place_of(first) != place_of(second)
    rooms.give_back([first])
    assert rooms.take() is first
    assert len(rooms.take()) == 100
