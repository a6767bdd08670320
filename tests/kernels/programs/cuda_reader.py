"""Opens a CudaArena by its handle: cuda_reader.py HANDLE HEADER (both in hex). Prints a sum and a counter."""

import sys

from swarm_hpc.kernels.cuda_arena import CudaArena, CudaHandle
from swarm_hpc.kernels.plan import parse

handle, header = map(bytes.fromhex, sys.argv[1:])
with CudaArena.attach(CudaHandle.decode(handle), parse(header)) as arena:
    arena.tensor("half").fill_(2.5)
    arena.written()
    total = arena.tensor("weight").double().sum().item()
    sys.stdout.write(f"sum {total} steps {arena.tensor('steps').item()}\n")
