"""The package, its console script and its optional C extension.

`kernels/` and `configs/` stand beside the package for reading; installed, they are its
subpackages `kfcnet.kernels` and `kfcnet.configs`.
"""

import zlib
from pathlib import Path

from setuptools import Extension, find_packages, setup

FOLDERS = {"kfcnet.kernels": "kernels", "kfcnet.configs": "configs"}

# Built where a compiler is found; where there is none, or it fails, NumPy does the work.
# kfcnet/ops/cpu/extension.py compares the checksum with that of the sources that it finds.
SOURCES = ["kfcnet/ops/cpu/native.c", "kfcnet/ops/cpu/native_kernels.h"]
CRC = zlib.crc32(b"".join((Path(__file__).parent / path).read_bytes() for path in SOURCES))
NATIVE = Extension(
    "kfcnet.ops.cpu._native",
    SOURCES[:1],
    define_macros=[("SOURCES_CRC", f"{CRC}u")],
    extra_compile_args=["-O3", "-fno-math-errno"],
    depends=SOURCES[1:],
    optional=True,
)

# There are none for the other systems, where tests that need them are skipped.
NVIDIA = "sys_platform != 'darwin'"
MPI = ["mpi4py>=4.1", "mpich; sys_platform != 'win32'"]

setup(
    name="kfcnet",
    version="0.1.0",
    description="Kronecker-factored approximate Fisher matrix for convolution layers (KFC)",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=[*find_packages(include=["kfcnet", "kfcnet.*"]), *FOLDERS],
    package_dir=FOLDERS,
    package_data={
        "kfcnet": ["py.typed"],
        "kfcnet.data": ["*.h5"],
        "kfcnet.kernels": ["*.cu", "*.cuh", "*.h", "README.md"],
        "kfcnet.configs": ["*.yaml"],
    },
    ext_modules=[NATIVE],
    install_requires=[
        "numpy>=1.26",
        "scipy>=1.12",
        "h5py>=3.11",
        "matplotlib>=3.10",
        "Markdown>=3.4",
        "PyYAML>=6.0.1",
        "pydantic>=2.6",
        "tqdm>=4.65",
        "threadpoolctl>=3.1",
    ],
    extras_require={
        "cuda12": ["cupy-cuda12x[ctk]>=14.0"],
        "cuda13": ["cupy-cuda13x[ctk]>=14.0"],
        "docs": [
            "jupytext>=1.16",
            "nbclient>=0.10",
            "nbconvert>=7.16",
            "ipykernel>=6.29",
            "mkdocs>=1.6",
            "latex2mathml>=3.77",
        ],
        "nccl12": ["nvidia-nccl-cu12>=2.18"],
        "nccl13": ["nvidia-nccl-cu13>=2.18"],
        "mpi": MPI,
        "lint": ["ruff==0.17.6"],
        "test": [
            "pytest>=7.4",
            "pytest-xdist>=3.5",
            "setuptools>=70.1",
            f"nvidia-cuda-nvrtc; {NVIDIA}",
            f"nvidia-cuda-nvrtc-cu12==12.2.140; {NVIDIA}",  # the oldest that cuda12 admits
            f"nvidia-cuda-nvdisasm; {NVIDIA}",
            *MPI,
            "onnx",
        ],
    },
    entry_points={"console_scripts": ["kfcnet=kfcnet.cli:main"]},
    zip_safe=False,
)
