"""The runtime and the stand-in for CuPy against released packages of CuPy: see cupy_names.py."""

import json

import cupy_names
import fake_cupy
import nvrtc
import pytest

KNOWN = json.loads(cupy_names.TABLE.read_text(encoding="utf-8"))
USED = cupy_names.in_source(cupy_names.RUNTIME.read_text(encoding="utf-8"))


def test_the_oldest_cupy_that_the_extras_admit_is_known():
    text = (cupy_names.ROOT / "setup.py").read_text(encoding="utf-8")
    oldest = min(KNOWN, key=lambda version: tuple(map(int, version.split("."))))
    assert text.count(f"[ctk]>={oldest.removesuffix('.0')}") == 2, oldest


@pytest.mark.parametrize("version", KNOWN)
def test_cupy_has_every_name_that_the_runtime_uses(version):
    assert USED - set(KNOWN[version]["names"]) == set()


@pytest.mark.parametrize("version", KNOWN)
def test_cupy_has_every_name_that_the_stand_in_has(version):
    assert cupy_names.in_stand_in(fake_cupy.CLASSES) - set(KNOWN[version]["names"]) == set()


def test_the_stand_in_has_every_name_that_the_runtime_uses():
    modules = fake_cupy.modules()
    assert {name for name in USED if not cupy_names.is_in(name, modules)} == set()


def test_a_name_that_only_a_package_could_refuse_is_found():
    text = "from cupy.cuda import cublas\nmode = cublas.CUBLAS_TF32_TENSOR_OP_MATH\n"
    text += "memory = self._cupy.cuda.memory\nblock = memory.Blocks(_cupy().uint3)\n"
    assert cupy_names.in_source(text) == {
        "cupy.cuda.memory",
        "cupy.cuda.cublas.CUBLAS_TF32_TENSOR_OP_MATH",
        "cupy.cuda.memory.Blocks",
        "cupy.uint3",
    }
    assert not cupy_names.is_in("cupy.cuda.cublas.CUBLAS_TF32_MATH", fake_cupy.modules())


@pytest.mark.parametrize("version", KNOWN)
def test_kernels_are_compiled_with_the_options_of_cupy(version):
    assert sorted(nvrtc.options({"SIZE": 1}, "sm_90")) == sorted(
        [*KNOWN[version]["options"], "--ptxas-options=-v"]
    )


def test_the_list_is_that_of_the_cupy_which_is_installed():
    cupy = pytest.importorskip("cupy")
    assert cupy.__version__ in KNOWN, "python tests/cupy_names.py adds it"
    assert cupy_names.options_of_cupy(["-DSIZE=1"]) == KNOWN[cupy.__version__]["options"][1:]
