"""GPU memory with the bytes of one blob: a program's parameters, where another process on the same GPU reads them.

What `arena.Arena` is in shared memory: one plain device allocation in the blob's layout, passed by a CUDA IPC handle,
with an event for the order of writes and reads. The handle is a few bytes for a control message. Not yet a part of the
protocol between SL and ML (docs/architecture.md): their hand-off goes through shared memory.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self
from uuid import UUID

import torch
from torch import Tensor

from swarm_hpc.errors import BlobCorrupt, ConfigError, DiskFull, ModelMismatch
from swarm_hpc.kernels.plan import Layout, Placed
from swarm_hpc.kernels.torch_dtypes import DTYPES

HANDLE_BYTES: Final = 64
"""Of a CUDA IPC handle: CUDA_IPC_HANDLE_SIZE."""
_UUID_BYTES: Final = 16
_LAZY_PEER_ACCESS: Final = 1
_OUT_OF_MEMORY: Final = 2


@dataclass(frozen=True, slots=True)
class CudaHandle:
    """What another process needs to open the memory: no secret, but of use only on this host, while the maker lives."""

    gpu: UUID
    memory: bytes
    event: bytes

    def encode(self) -> bytes:
        """As bytes of a control message."""
        return self.gpu.bytes + self.memory + self.event

    @classmethod
    def decode(cls, data: bytes) -> CudaHandle:
        """BlobCorrupt where it has not the length of what `encode` gives; the driver checks the rest."""
        if len(data) != _UUID_BYTES + 2 * HANDLE_BYTES:
            raise BlobCorrupt(f"{len(data)} bytes are no handle of GPU memory: it has {_UUID_BYTES + 2 * HANDLE_BYTES}")
        memory, event = data[_UUID_BYTES : _UUID_BYTES + HANDLE_BYTES], data[_UUID_BYTES + HANDLE_BYTES :]
        return cls(UUID(bytes=data[:_UUID_BYTES]), memory, event)


class CudaArena:
    """Device memory with one blob. Use it as a context manager, or call `close`.

    Whoever writes calls `written` afterwards, whoever reads calls `wait` before: then the reader's stream waits for the
    writer's, and no process for a stream. The maker keeps it open for as long as others use it.
    """

    def __init__(self, memory: _Memory, event: torch.cuda.Event, handle: CudaHandle, layout: Layout) -> None:
        """For `create` and `attach`."""
        self.layout = layout
        self.handle = handle
        self._event = event
        self.buffer: Tensor = torch.as_tensor(memory, device=f"cuda:{memory.device}")
        """The whole blob as bytes, writable, header included; empty once closed."""
        self._placed: dict[str, Placed] = {placed.spec.name: placed for placed in layout.tensors}
        self._placed |= {alias: self._placed[stored] for alias, stored in layout.aliases}

    @classmethod
    def create(cls, layout: Layout, device: int = 0) -> Self:
        """A new arena on a GPU of this process: header in place, all values zero. DiskFull where there is not enough.

        ConfigError where the GPU's memory cannot be shared.
        """
        gpu = _gpus().get(device)
        if gpu is None:
            raise ConfigError(f"there is no GPU {device}; torch sees {len(_gpus())}: look at CUDA_VISIBLE_DEVICES")
        with torch.cuda.device(device):
            memory = _Memory.allocate(layout.size_bytes, device)
            event = torch.cuda.Event(interprocess=True)  # type: ignore[no-untyped-call]
            # an event that was never recorded has no handle
            event.record()
            shared: bytes = event.ipc_handle()  # type: ignore[no-untyped-call]
            arena = cls(memory, event, CudaHandle(gpu, memory.export(), shared), layout)
            arena.buffer.zero_()
            arena.buffer[: len(layout.header)] = torch.frombuffer(bytearray(layout.header), dtype=torch.uint8)
            arena.written()
        return arena

    @classmethod
    def attach(cls, handle: CudaHandle, layout: Layout) -> Self:
        """Map an arena that another process made on the same GPU.

        ConfigError where this process cannot have it, BlobCorrupt where it is too small or another model's.
        """
        device = next((index for index, gpu in _gpus().items() if gpu == handle.gpu), None)
        if device is None:
            seen = ", ".join(str(gpu) for gpu in _gpus().values()) or "none"
            raise ConfigError(
                f"the other process's parameters are on GPU {handle.gpu}; this process sees {seen}: give both the same "
                "GPU, or MIG slice (CUDA_VISIBLE_DEVICES)"
            )
        with torch.cuda.device(device):
            memory = _Memory.open(handle.memory, layout.size_bytes, device)
            where = torch.device("cuda", device)
            event = torch.cuda.Event.from_ipc_handle(where, handle.event)  # type: ignore[no-untyped-call]
            arena = cls(memory, event, handle, layout)
            arena.wait()
        arena.check_header()
        return arena

    def check_header(self) -> None:
        """BlobCorrupt where the program on the other side has overwritten the header."""
        if self.buffer[: len(self.layout.header)].cpu().numpy().tobytes() != self.layout.header:
            raise BlobCorrupt("the arena's header is not the model's: something wrote beyond its tensor")

    def tensor(self, name: str) -> Tensor:
        """The tensor (or alias) as a writable view of the device memory. ModelMismatch where there is none."""
        placed = self._placed.get(name)
        if placed is None:
            raise ModelMismatch(f"tensor {name!r} is not in the arena's model")
        flat = self.buffer[placed.start : placed.stop].view(DTYPES[placed.spec.dtype])
        return flat.view(placed.spec.shape)

    def written(self) -> None:
        """What this process has queued on the current stream is what others wait for from now on."""
        self._event.record()

    def wait(self) -> None:
        """What this process queues on the current stream from now on comes after what was last `written`."""
        self._event.wait()

    def close(self) -> None:
        """Let go of the memory; it is given back once no tensor uses it. May be repeated."""
        self.buffer = torch.empty(0, dtype=torch.uint8)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Memory:
    """One allocation, or one mapping of another process's; torch's tensors keep it alive and give it back at last."""

    def __init__(self, address: int, size_bytes: int, device: int, give_back: str) -> None:
        self.address = address
        self.device = device
        self._give_back = give_back
        # how torch finds out about memory that is not its own
        self.__cuda_array_interface__ = {
            "shape": (size_bytes,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 3,
        }

    @classmethod
    def allocate(cls, size_bytes: int, device: int) -> _Memory:
        # not from torch's allocator: that one hands out parts of larger allocations, and a handle is of a whole one
        pointer = ctypes.c_void_p()
        code = _runtime().cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(size_bytes))
        if code == _OUT_OF_MEMORY:
            raise DiskFull(f"no GPU memory for an arena of {size_bytes / (1 << 20):.0f} MiB: use a smaller batch")
        _check(code, "allocate GPU memory")
        return cls(pointer.value or 0, size_bytes, device, "cudaFree")

    @classmethod
    def open(cls, handle: bytes, size_bytes: int, device: int) -> _Memory:
        pointer = ctypes.c_void_p()
        code = _runtime().cudaIpcOpenMemHandle(
            ctypes.byref(pointer), _IpcHandle.from_buffer_copy(handle), ctypes.c_uint(_LAZY_PEER_ACCESS)
        )
        _check(code, "open the other process's GPU memory")
        memory = cls(pointer.value or 0, size_bytes, device, "cudaIpcCloseMemHandle")
        if (found := _allocated(memory.address)) < size_bytes:
            raise BlobCorrupt(f"the arena has {found} bytes, the model {size_bytes}")
        return memory

    def export(self) -> bytes:
        handle = _IpcHandle()
        code = _runtime().cudaIpcGetMemHandle(ctypes.byref(handle), ctypes.c_void_p(self.address))
        _check(code, "share GPU memory")
        return bytes(handle)

    def __del__(self) -> None:
        # at the end of the program the driver may be gone already, and has taken everything back
        getattr(_runtime(), self._give_back)(ctypes.c_void_p(self.address))


class _IpcHandle(ctypes.Structure):
    """Passed by value."""

    _fields_ = (("reserved", ctypes.c_char * HANDLE_BYTES),)


def _gpus() -> dict[int, UUID]:
    """The GPUs that this process sees, by their numbers here."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {index: UUID(str(torch.cuda.get_device_properties(index).uuid)) for index in range(count)}


def _runtime() -> ctypes.CDLL:
    """The CUDA runtime that torch has loaded: by its name, the loader finds that one."""
    name = f"libcudart.so.{str(torch.version.cuda).partition('.')[0]}"
    try:
        return ctypes.CDLL(name)
    except OSError as exc:
        raise ConfigError(f"CUDA's runtime {name} cannot be loaded: install torch for CUDA ({exc})") from exc


def _allocated(address: int) -> int:
    """Bytes of the allocation that begins there."""
    base, size = ctypes.c_void_p(), ctypes.c_size_t()
    code = ctypes.CDLL("libcuda.so.1").cuMemGetAddressRange_v2(
        ctypes.byref(base), ctypes.byref(size), ctypes.c_void_p(address)
    )
    if code:
        raise BlobCorrupt(f"the driver does not know the size of the other process's GPU memory (error {code})")
    return size.value


def _check(code: int, what: str) -> None:
    if not code:
        return
    text = _runtime().cudaGetErrorString
    text.restype = ctypes.c_char_p
    raise ConfigError(
        f"cannot {what}: {text(code).decode()}; CUDA IPC needs both processes on one GPU, in one IPC and PID namespace "
        "(containers: Apptainer has that, Docker needs --ipc=host --pid=host), and the one that opens is not the maker"
    )
