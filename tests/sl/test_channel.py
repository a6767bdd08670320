"""The channel between ML and SL, both ends, over a real socket."""

import asyncio
import multiprocessing
import os
import signal
import socket
from pathlib import Path

import numpy as np
import pytest

from swarm_hpc.errors import ConfigError, ModelMismatch, NotReachable, ProtocolError, TimedOut
from swarm_hpc.kernels.arena import Arena
from swarm_hpc.kernels.plan import TensorSpec, place
from swarm_hpc.records import FinishMode, MergeMethod, Platform, Progress
from swarm_hpc.sl import frames
from swarm_hpc.sl.channel import MlChannel
from swarm_hpc.sl.listener import Connection, listen

TENSORS = (TensorSpec("weight", "F32", (2, 3)), TensorSpec("größe", "I64", ()))
REQUEST = frames.OpenRequest(platform=Platform.PYTORCH, tensors=TENSORS, aliases={"tied": "weight"}, total_epochs=3)


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ml, sl = MlChannel(ours, timeout_s=20), Connection(theirs, waiting_every_s=0.02)
    ml.on_waiting = lambda reason: None
    yield ml, sl
    ml.close()
    sl.close()


def opened(layout, **changes):
    fields = {
        "layout": layout.header[frames.LENGTH_BYTES :].decode(),
        "size_bytes": layout.size_bytes,
        "resume": False,
        "contract": "digits",
        "min_peers": 2,
        "merge_method": MergeMethod.MEAN,
        "node_weight": 7,
        "round": 1,
    }
    return frames.Opened(**fields | changes)


async def open_session(ml, sl, arena):
    asking = asyncio.create_task(asyncio.to_thread(ml.open, REQUEST))
    request = await sl.receive()
    await sl.send(opened(arena.layout), fd=arena.fd)
    return request, await asking


async def test_a_program_opens_a_session_and_both_sides_see_the_same_memory(ends):
    ml, sl = ends
    with Arena.create(place(TENSORS, {"tied": "weight"})) as arena:
        request, session = await open_session(ml, sl, arena)
        assert request == REQUEST
        assert (session.contract, session.node_weight, session.resume) == ("digits", 7, False)
        session.arena.array("weight")[:] = 2.5
        assert np.all(arena.array("tied") == 2.5)
        arena.array("größe")[...] = 9
        assert session.arena.array("größe") == 9


async def test_a_sync_hears_why_it_waits_before_its_answer(ends):
    ml, sl = ends
    heard = []
    ml.on_waiting = heard.append
    go_on = asyncio.Event()

    async def work():
        await go_on.wait()
        return frames.Synced(round=4, num_peers=3, training_over=False, late=False)

    def reason():
        if len(heard) >= 2:
            go_on.set()
        return "digits round 4: 1 of 3 peers checked in"

    asking = asyncio.create_task(asyncio.to_thread(ml.sync, loss=0.5, metric=float("nan"), epoch=2, batch=8))
    assert await sl.receive() == frames.SyncRequest(loss=0.5, metric=None, epoch=2, batch=8)
    await sl.send(await sl.wait_for(work(), reason))
    assert (await asking).round == 4
    assert set(heard) == {"digits round 4: 1 of 3 peers checked in"} and len(heard) >= 2


async def test_an_error_of_sl_is_raised_by_its_name_in_the_program(ends):
    ml, sl = ends
    asking = asyncio.create_task(asyncio.to_thread(ml.open, REQUEST))
    await sl.receive()
    await sl.send_error(ModelMismatch("tensor 'weight' is F32 [3]"))
    with pytest.raises(ModelMismatch, match=r"weight.*\[3\]"):
        await asking


async def test_progress_and_finish_have_their_own_answers(ends):
    ml, sl = ends
    asking = asyncio.create_task(asyncio.to_thread(ml.progress, Progress(contract="digits", epoch=2)))
    assert await sl.receive() == Progress(contract="digits", epoch=2)
    await sl.send(frames.Ok())
    await asking
    asking = asyncio.create_task(asyncio.to_thread(ml.finish, FinishMode.ACTIVE))
    assert await sl.receive() == frames.FinishRequest(mode=FinishMode.ACTIVE)
    await sl.send(frames.Finished(round=9, merged="ab"))
    assert (await asking).merged == "ab"


async def test_a_silent_sl_is_given_up():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs, MlChannel(ours, timeout_s=0.05) as ml, pytest.raises(TimedOut, match="SL is gone"):
        await asyncio.to_thread(ml.sync)


async def test_an_sl_that_ends_is_not_reachable(ends):
    ml, sl = ends
    asking = asyncio.create_task(asyncio.to_thread(ml.sync))
    await sl.receive()
    sl.close()
    with pytest.raises(NotReachable, match="SL is gone"):
        await asking


async def test_a_program_that_ends_stops_the_work_for_it(ends):
    ml, sl = ends
    stopped = asyncio.Event()

    async def work():
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    ml.close()
    with pytest.raises(ConnectionAbortedError):
        await sl.wait_for(work(), lambda: "waiting")
    assert stopped.is_set()
    assert await sl.receive() is None


@pytest.fixture
def fork():
    """Forks a process that calls a function, as a DataLoader does; ended with the test at the latest."""
    made = []

    def make(call):
        made.append(multiprocessing.get_context("fork").Process(target=call, daemon=True))
        made[-1].start()
        return made[-1]

    yield make
    for child in made:
        child.kill()
        child.join()


async def test_the_end_of_a_session_is_heard_of_while_a_process_that_the_program_has_forked_lives(ends, fork):
    ml, sl = ends
    fork(signal.pause)
    ml.close()
    async with asyncio.timeout(5):
        assert await sl.receive() is None


async def test_a_process_that_the_program_has_forked_does_not_end_its_session(ends, fork):
    ml, sl = ends
    fork(ml.close).join()
    asking = asyncio.create_task(asyncio.to_thread(ml.saved))
    assert await sl.receive() == frames.Saved()
    await sl.send(frames.Ok())
    await asking


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x00\x00\x01{",
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x04{}{}",
        b'\x00\x00\x00\x10{"type":"kiss"} ',
        b'\x00\x00\x00\x19{"type":"sync","epoch":[]}',
        b"\x00\x00\x00\x09[[[[[[[[[",
        b'\x00\x00\x00\x1c{"type":"open","tensors":[1]',
        b"\x00\x00\x00\x09half",
    ],
)
async def test_an_odd_frame_is_a_protocol_error(data):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    connection = Connection(theirs)
    with ours:
        ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)
        with pytest.raises(ProtocolError):
            await connection.receive()
    connection.close()


async def test_an_answer_out_of_place_is_a_protocol_error_and_leaks_no_descriptor(ends):
    ml, sl = ends
    with Arena.create(place(TENSORS)) as arena:
        before = len(os.listdir("/proc/self/fd"))
        asking = asyncio.create_task(asyncio.to_thread(ml.sync))
        await sl.receive()
        await sl.send(opened(arena.layout), fd=arena.fd)
        with pytest.raises(ProtocolError, match="Opened instead of Synced"):
            await asking
        assert len(os.listdir("/proc/self/fd")) == before


async def test_an_arena_of_another_size_is_refused(ends):
    ml, sl = ends
    with Arena.create(place(TENSORS)) as arena:
        asking = asyncio.create_task(asyncio.to_thread(ml.open, REQUEST))
        await sl.receive()
        await sl.send(opened(arena.layout, size_bytes=arena.layout.size_bytes + 8), fd=arena.fd)
        with pytest.raises(ProtocolError, match="arena of"):
            await asking


async def test_a_listener_takes_programs_in_a_folder_for_its_user_only(tmp_path):
    with listen(Path(tmp_path)) as listener:
        assert listener.path.parent.stat().st_mode & 0o777 == 0o700
        connecting = asyncio.create_task(asyncio.to_thread(MlChannel.connect, str(listener.path)))
        connection = await listener.accept()
        assert connection.pid == os.getpid()
        (await connecting).close()
        assert await connection.receive() is None
        connection.close()
    assert not listener.path.exists()


async def test_a_socket_may_lie_deeper_than_an_address_is_long(tmp_path):
    with listen(tmp_path.joinpath(*["x" * 100] * 3)) as listener:
        connecting = asyncio.create_task(asyncio.to_thread(MlChannel.connect, str(listener.path)))
        connection = await listener.accept()
        (await connecting).close()
        connection.close()
    assert not listener.path.exists()


def test_a_state_folder_in_which_nobody_can_listen_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"state_dir: no socket can be made in .*/file/channel: Not a directory"):
        listen(tmp_path / "file").__enter__()


def test_no_sl_node_is_an_error_that_names_the_socket(tmp_path):
    with pytest.raises(NotReachable, match=r"none\.sock.*SWARM_SL_SOCKET"):
        MlChannel.connect(str(tmp_path / "none.sock"), timeout_s=0)
