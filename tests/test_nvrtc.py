"""Every kernel compiled for real: for each architecture, in each specialisation that is launched.

registers.csv has the registers of a thread by architecture, the most over all specialisations, in
eights as they are allotted, and the bytes of static shared memory. sm_75 has the fp32 kernels, the
others the TF32 ones. `python tests/test_nvrtc.py > tests/registers.csv` writes it anew.

All this is slow; what the CIFAR-10 network launches on sm_90 is compiled by the tests of
compiled_counts.csv too.
"""

import csv
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import nvrtc
import pytest
import specialisations

from kfcnet.ops.cuda import kernels

pytestmark = pytest.mark.skipif(nvrtc.missing() is not None, reason=str(nvrtc.missing()))


TABLED = ["sm_75", "sm_90", "sm_120"]
ARCHITECTURES = [*TABLED, "sm_80", "sm_86", "sm_89", "sm_100"]
WITHOUT_TF32 = {"sm_75"}
SHARED = {"sm_75": 64 * 1024}  # bytes a block can have; 99 KB at least from 8.0 on
REGISTERS = 64 * 1024  # of a multiprocessor
TABLE = Path(__file__).with_name("registers.csv")


@cache
def compiled(architecture, tensor_cores, version=None):
    """[(Specialisation, {kernel: Resources})], compiled by two processes."""
    wanted, version = specialisations.everything(tensor_cores), version or nvrtc.newest()
    sources = [
        (kernels.source(one.file), dict(one.constants), architecture, version) for one in wanted
    ]
    new = [source for source in sources if not nvrtc.cached(*source).exists()]
    if new:
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            list(pool.map(nvrtc.resources, *zip(*new, strict=True), chunksize=2))
    return [(one, nvrtc.resources(*source)) for one, source in zip(wanted, sources, strict=True)]


def worst(architecture):
    """{kernel: (most registers, in eights as they are allotted; most static shared memory)}."""
    most = {}
    for _, found in compiled(architecture, architecture not in WITHOUT_TF32):
        for kernel, used in found.items():
            registers, shared = most.get(kernel, (0, 0))
            most[kernel] = (
                max(registers, -(-used.registers // 8) * 8),
                max(shared, used.static_shared),
            )
    return most


def table():
    """{kernel: {column: number}} of registers.csv; no number where an architecture lacks it."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return {
            row.pop("kernel"): {column: int(cell) for column, cell in row.items() if cell}
            for row in csv.DictReader(file)
        }


@pytest.mark.slow
@pytest.mark.parametrize(
    "version", [pytest.param(each, id=".".join(map(str, each))) for each in nvrtc.libraries()]
)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_compiles_without_spills_and_fits_a_multiprocessor(architecture, version):
    if architecture not in nvrtc.architectures(version):
        pytest.skip("older than the architecture")
    if version != nvrtc.newest() and architecture != "sm_90":
        pytest.skip("one architecture is compiled by the older ones")
    for specialisation, found in compiled(architecture, architecture not in WITHOUT_TF32, version):
        for kernel, used in found.items():
            where = f"{kernel} {dict(specialisation.constants)} for {architecture}: {used}"
            assert used.spilled == 0, where
            threads, dynamic = specialisation.launches.get(kernel, (0, 0))
            assert threads * (-(-used.registers // 8) * 8) <= REGISTERS, where
            assert used.static_shared + dynamic <= SHARED.get(architecture, 99 * 1024), where


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_120"])
def test_fp32_kernels_compile_without_spills_where_there_are_tensor_cores(architecture):
    for specialisation, found in compiled(architecture, False):
        for kernel, used in found.items():
            assert used.spilled == 0, (kernel, specialisation.constants, used)


@pytest.mark.parametrize("width", [1, 3, 8])
@pytest.mark.parametrize("file", ["dropout", "gather", "random"])
def test_kernels_of_a_shared_mini_batch_compile_without_spills(file, width):
    constants = dict(RANKS=4, RANK=3, WIDTH=width)
    if file == "gather":
        constants["IMAGE_SIZE"] = 12
    for kernel, used in nvrtc.resources(kernels.source(file), constants, "sm_90").items():
        assert used.spilled == 0, (kernel, used)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", TABLED)
def test_no_kernel_needs_more_than_the_table_says(architecture):
    limits = table()
    for kernel, (registers, shared) in worst(architecture).items():
        assert kernel in limits, f"{kernel} lacks a line in {TABLE.name}"
        assert registers <= limits[kernel][architecture], (kernel, registers)
        assert shared <= limits[kernel]["static_shared"], (kernel, shared)


def test_table_lists_nothing_that_is_not_there():
    present = {
        name for path in kernels.folder().glob("*.cu") for name in kernels.signatures(path.stem)
    }
    assert set(table()) == present


def test_every_source_is_compiled():
    launched = {
        found.file
        for tensor_cores in (False, True)
        for found in specialisations.everything(tensor_cores)
    }
    assert launched == {path.stem for path in kernels.folder().glob("*.cu")}


def test_compile_error_shows_the_log():
    with pytest.raises(nvrtc.CompileError, match="unknown"):
        nvrtc.resources('extern "C" __global__ void f(float* y) { *y = unknown; }', {}, "sm_90")


def test_spills_and_static_shared_memory_are_read_from_the_log():
    text = """extern "C" __global__ void __launch_bounds__(1024) spills(float* y) {
        __shared__ float tile[1024];
        float many[128];
        for (int i = 0; i < 128; ++i) many[i] = y[i * 1024 + threadIdx.x];
        tile[threadIdx.x] = many[0];
        __syncthreads();
        for (int j = 0; j < 1024; ++j)
            for (int i = 0; i < 128; ++i) many[i] = many[i] * tile[j] + i;
        for (int i = 0; i < 128; ++i) y[i * 1024 + threadIdx.x] = many[i];
    }"""
    used = nvrtc.resources(text, {}, "sm_90")["spills"]
    assert used.static_shared == 4096
    assert used.spilled > 0


def main():
    found = {architecture: worst(architecture) for architecture in TABLED}
    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow(["kernel", *TABLED, "static_shared"])
    for kernel in sorted(set().union(*found.values())):
        cells = [found[name].get(kernel, ("", 0)) for name in TABLED]
        rows.writerow([kernel, *(cell[0] for cell in cells), max(cell[1] for cell in cells)])


if __name__ == "__main__":
    sys.path.insert(0, os.fspath(Path(__file__).parents[1]))
    main()
