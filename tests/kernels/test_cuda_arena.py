"""GPU memory that two processes share. All but the handle's form needs a GPU."""

import subprocess
import sys
from pathlib import Path
from uuid import UUID

import pytest
import torch

from swarm_hpc.errors import BlobCorrupt, ConfigError, ModelMismatch
from swarm_hpc.kernels.arena import DTYPES as NUMPY_DTYPES
from swarm_hpc.kernels.cuda_arena import DTYPES, HANDLE_BYTES, CudaArena, CudaHandle
from swarm_hpc.kernels.plan import WIDTHS, TensorSpec, parse, place

PROGRAM = Path(__file__).parent / "programs" / "cuda_reader.py"
MODEL = place(
    [TensorSpec("weight", "F32", (300, 1000)), TensorSpec("steps", "I64", ()), TensorSpec("half", "BF16", (7,))],
    {"tied": "weight"},
)
HANDLE = CudaHandle(UUID(int=1), bytes(range(HANDLE_BYTES)), bytes(HANDLE_BYTES))


def test_a_handle_comes_back_from_its_bytes():
    assert CudaHandle.decode(HANDLE.encode()) == HANDLE


@pytest.mark.parametrize("data", [b"", HANDLE.encode()[:-1], HANDLE.encode() + b"x"], ids=["empty", "short", "long"])
def test_bytes_of_another_length_are_no_handle(data):
    with pytest.raises(BlobCorrupt, match="no handle of GPU memory"):
        CudaHandle.decode(data)


def test_memory_on_a_gpu_that_is_not_here_is_refused_with_the_remedy():
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES"):
        CudaArena.attach(HANDLE, MODEL)
    with pytest.raises(ConfigError, match="there is no GPU 99"):
        CudaArena.create(MODEL, 99)


def test_every_dtype_is_known_by_its_width():
    assert {code: dtype.itemsize for code, dtype in DTYPES.items()} == dict(WIDTHS)
    assert DTYPES.keys() == NUMPY_DTYPES.keys()


def read_elsewhere(handle: CudaHandle, *, blob: bytes = MODEL.header) -> str:
    """What another process finds there; it also changes `half`."""
    command = [sys.executable, str(PROGRAM), handle.encode().hex(), blob.hex()]
    found = subprocess.run(command, capture_output=True, text=True, timeout=100)
    return found.stdout + found.stderr


@pytest.mark.gpu
def test_another_process_sees_what_is_written_and_writes_back():
    with CudaArena.create(MODEL) as arena:
        arena.tensor("tied").copy_(torch.arange(300_000.0).view(300, 1000))
        arena.tensor("steps").fill_(7)
        arena.written()
        assert read_elsewhere(arena.handle) == "sum 44999850000.0 steps 7\n"
        arena.wait()
        assert arena.tensor("half").tolist() == [2.5] * 7
        assert parse(arena.buffer.cpu().numpy().tobytes()) == MODEL


@pytest.mark.gpu
def test_tensors_outlive_the_arena_and_a_new_one_is_all_zeros():
    for _ in range(3):
        arena = CudaArena.create(MODEL)
        weight = arena.tensor("weight")
        assert not weight.any()
        arena.close()
        arena.close()
        weight.fill_(3)
        assert weight.sum() == 900_000
        with pytest.raises(ModelMismatch, match="'other'"):
            arena.tensor("other")


@pytest.mark.gpu
def test_an_arena_of_another_model_is_refused():
    with CudaArena.create(MODEL) as arena:
        for specs, message in (
            ([TensorSpec("weight", "F32", (301, 1000))], "BlobCorrupt"),
            ([TensorSpec("large", "F32", (1 << 24,))], "BlobCorrupt"),
        ):
            assert message in read_elsewhere(arena.handle, blob=place(specs).header)


@pytest.mark.gpu
def test_the_process_that_made_it_cannot_open_it_again():
    with CudaArena.create(MODEL) as arena, pytest.raises(ConfigError, match="not the maker"):
        CudaArena.attach(arena.handle, MODEL)
