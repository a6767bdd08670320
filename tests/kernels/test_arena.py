"""Shared memory between two processes, with the form of a blob."""

import gc
import mmap
import os
import resource
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from swarm_hpc.errors import BlobCorrupt, DiskFull, ModelMismatch
from swarm_hpc.kernels.arena import DTYPES, Arena
from swarm_hpc.kernels.plan import WIDTHS, TensorSpec, parse, place

LAYOUT = place(
    [
        TensorSpec("weight", "F32", (3, 4)),
        TensorSpec("half", "BF16", (5,)),
        TensorSpec("steps", "I64", ()),
        TensorSpec("nothing", "F32", (0, 3)),
        TensorSpec("mask", "BOOL", (2,)),
    ],
    {"tied": "weight"},
)


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def collected():
    """Arenas of earlier tests in this process, which wait for the garbage collector, are gone."""
    gc.collect()


def num_mappings() -> int:
    return Path("/proc/self/maps").read_text().count("swarm-hpc-arena")


def test_every_dtype_that_can_be_placed_has_a_numpy_dtype_of_its_width():
    assert {code: dtype.itemsize for code, dtype in DTYPES.items()} == WIDTHS
    assert DTYPES["BF16"] == ml_dtypes.bfloat16


def test_a_new_arena_is_a_blob_of_zeros():
    with Arena.create(LAYOUT) as arena:
        assert parse(arena.buffer) == LAYOUT
        assert not any(arena.buffer[len(LAYOUT.header) :])


def test_arrays_are_views_at_the_tensors_places():
    with Arena.create(LAYOUT) as arena:
        arena.array("weight")[...] = np.arange(12, dtype=np.float32).reshape(3, 4)
        arena.array("half")[...] = 1.5
        arena.array("steps")[...] = 7
        arena.array("mask")[1] = True
        assert arena.array("half").dtype == ml_dtypes.bfloat16
        assert arena.array("steps").shape == ()
        assert arena.array("nothing").shape == (0, 3)
        for placed in LAYOUT.tensors:
            assert arena.array(placed.spec.name).tobytes() == bytes(arena.buffer[placed.start : placed.stop])
        arena.array("tied")[0, 0] = -1
        assert arena.array("weight")[0, 0] == -1
        with pytest.raises(ModelMismatch, match="'bias' is not in"):
            arena.array("bias")


def test_another_process_sees_what_is_written():
    program = (
        "import sys; from swarm_hpc.kernels.arena import Arena; from swarm_hpc.kernels.plan import parse\n"
        "layout = parse(bytes.fromhex(sys.argv[2]))\n"
        "with Arena.attach(int(sys.argv[1]), layout) as arena: arena.array('weight')[...] *= 2"
    )
    with Arena.create(LAYOUT) as arena:
        arena.array("weight")[...] = 21
        command = [sys.executable, "-c", program, str(arena.fd), LAYOUT.header.hex()]
        subprocess.run(command, pass_fds=[arena.fd], check=True)
        assert (arena.array("weight") == 42).all()


def test_the_size_is_sealed():
    with Arena.create(LAYOUT) as arena:
        for size_bytes in (0, LAYOUT.size_bytes - 1, LAYOUT.size_bytes + 1):
            with pytest.raises(PermissionError):
                os.ftruncate(arena.fd, size_bytes)


def test_its_descriptor_is_not_inherited():
    with Arena.create(LAYOUT) as arena, Arena.attach(os.dup(arena.fd), LAYOUT) as attached:
        assert not os.get_inheritable(arena.fd)
        assert not os.get_inheritable(attached.fd)


def test_attach_refuses_what_is_no_arena_of_the_model_and_leaves_no_descriptor(tmp_path):
    other = place([TensorSpec("weight", "F32", (3, 5))])
    renamed = place(
        [TensorSpec(p.spec.name.upper(), p.spec.dtype, p.spec.shape) for p in LAYOUT.tensors], {"TIED": "WEIGHT"}
    )
    assert renamed.size_bytes == LAYOUT.size_bytes
    before = open_fds()
    with Arena.create(LAYOUT) as arena:
        with pytest.raises(BlobCorrupt, match="bytes, the model"):
            Arena.attach(os.dup(arena.fd), other)
        with pytest.raises(BlobCorrupt, match="header"):
            Arena.attach(os.dup(arena.fd), renamed)
    plain = os.memfd_create("plain", os.MFD_ALLOW_SEALING)
    os.ftruncate(plain, LAYOUT.size_bytes)
    with pytest.raises(BlobCorrupt, match="not sealed"):
        Arena.attach(plain, LAYOUT)
    with pytest.raises(BlobCorrupt, match="cannot be sealed"):
        Arena.attach(os.open(tmp_path, os.O_RDONLY), LAYOUT)
    assert open_fds() == before


def test_an_overwritten_header_is_noticed():
    with Arena.create(LAYOUT) as arena:
        arena.check_header()
        arena.buffer[20] ^= 1
        with pytest.raises(BlobCorrupt, match="header"):
            arena.check_header()


def test_close_gives_everything_back_and_may_be_repeated():
    before = open_fds()
    arena = Arena.create(LAYOUT)
    assert num_mappings() == 1
    arena.array("weight")[...] = 1
    arena.close()
    arena.close()
    assert num_mappings() == 0
    assert arena.fd == -1
    assert len(arena.buffer) == 0
    assert open_fds() == before


def test_arrays_outlive_close_and_the_memory_goes_with_the_last_of_them():
    arena = Arena.create(LAYOUT)
    array = arena.array("weight")
    tensor = torch.from_numpy(arena.array("weight"))
    raw = torch.frombuffer(arena.buffer, dtype=torch.uint8)
    array[...] = 5
    arena.close()
    assert num_mappings() == 1
    assert (array == 5).all()
    assert (tensor == 5).all()
    assert raw[:8].tolist() == list(LAYOUT.header[:8])
    del array, tensor, raw
    gc.collect()
    assert num_mappings() == 0


def test_lack_of_memory_is_an_error_and_not_a_signal():
    big = place([TensorSpec("weight", "U8", (64 << 20,))])
    before = open_fds()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(DiskFull, match="64 MiB"):
            Arena.create(big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert open_fds() == before


def test_all_memory_is_reserved_at_once():
    layout = place([TensorSpec("weight", "F32", (1 << 18,))])
    with Arena.create(layout) as arena:
        assert os.fstat(arena.fd).st_blocks * 512 >= layout.size_bytes
        assert layout.size_bytes % mmap.PAGESIZE != 0
