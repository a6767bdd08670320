"""The one part of the package that is compiled: swarm_hpc/kernels/native.c, where there is a compiler."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "swarm_hpc.kernels._native",
            ["swarm_hpc/kernels/native.c"],
            extra_compile_args=[
                "-std=gnu11",
                "-O3",
                "-g0",
                # the bits of a merge must be numpy's: no product is fused with a sum
                "-ffp-contract=off",
                "-fno-math-errno",
                "-fno-wrapv",
                "-fno-trapping-math",
                "-fvisibility=hidden",
                "-Wno-psabi",
            ],
            # without a compiler, or with one that does not know these: numpy does it
            optional=True,
        )
    ]
)
