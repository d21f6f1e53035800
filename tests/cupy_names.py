"""What of CuPy the runtime uses, and what the released packages of CuPy say to it.

cupy_names.json holds, for each version, the names that it has and the options that it compiles
with. It is written where CuPy is installed, without a GPU, for one version at a time:

    pip install 'cupy-cuda13x[ctk]==14.2.0' && python tests/cupy_names.py

So the tests hold the runtime and its stand-in to real packages, and need none of them.
"""

import ast
import inspect
import json
import operator
import sys
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
RUNTIME = ROOT / "kfcnet" / "ops" / "cuda" / "runtime.py"
TABLE = Path(__file__).with_suffix(".json")
CLASSES = {  # of CuPy, by their names in fake_cupy.py
    "Device": "cupy.cuda.Device",
    "Event": "cupy.cuda.Event",
    "Graph": "cupy.cuda.Graph",
    "Memory": "cupy.cuda.memory.Memory",
    "MemoryPool": "cupy.cuda.MemoryPool",
    "RawKernel": "cupy.RawKernel",
    "RawModule": "cupy.RawModule",
    "Stream": "cupy.cuda.Stream",
    "ndarray": "cupy.ndarray",
}
# Of the stand-in.
OURS = {"actions", "code", "constants", "entered", "kernel", "library", "recorded_on", "time"}


def in_source(text):
    """The full names of CuPy in a module's source, such as cupy.cuda.Stream."""
    tree = ast.parse(text)
    aliases = {"cupy": "cupy", "cupyx": "cupyx"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cupy"):
            aliases |= {alias.name: f"{node.module}.{alias.name}" for alias in node.names}

    def full(node):
        if isinstance(node, ast.Name):
            return aliases.get(node.id)
        if isinstance(node, ast.Call):
            return "cupy" if isinstance(node.func, ast.Name) and node.func.id == "_cupy" else None
        if not isinstance(node, ast.Attribute):
            return None
        if isinstance(node.value, ast.Name) and (node.value.id, node.attr) == ("self", "_cupy"):
            return "cupy"
        owner = full(node.value)
        return owner and f"{owner}.{node.attr}"

    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            pairs = [(target, node.value) for target in node.targets]
            pairs += [
                pair
                for target, value in list(pairs)
                if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
                for pair in zip(target.elts, value.elts, strict=True)
            ]
            aliases |= {
                target.id: full(value)
                for target, value in pairs
                if isinstance(target, ast.Name) and full(value)
            }
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    found = {full(node) for node in ast.walk(tree) if id(node) not in inner}
    return {name for name in found if name and "." in name}


def in_stand_in(classes):
    """The full names that the stand-in's {name: class} claim CuPy's classes to have."""
    return {
        f"{CLASSES[name]}.{attribute}"
        for name, kind in classes.items()
        for attribute in {*vars(kind), *_set_by(kind)}
        if not attribute.startswith("_") and attribute not in OURS
    }


def _set_by(kind):
    """Attributes that the methods of a class give to its objects."""
    return {
        node.attr
        for node in ast.walk(ast.parse(inspect.getsource(kind)))
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


def is_in(name, modules):
    """Whether a full name leads to something, in {"cupy": module, ...}."""
    package, *path = name.split(".")
    kind = ".".join(path[:-1])
    for place in (kind, f"{kind}.null"):  # some attributes only objects have, as the null stream
        try:
            operator.attrgetter(".".join([*filter(None, [place]), path[-1]]))(modules[package])
        except (AttributeError, KeyError):
            continue
        return True
    return False


def options_of_cupy(options):
    """The options that CuPy gives NVRTC for a kernel of sm_90 with `options` of its own; without
    the folders of headers, of which our kernels include none.
    """
    from cupy.cuda import compiler

    class Compiled(Exception):
        pass

    def compile_program(program, given):
        raise Compiled(given)

    with (
        patch.object(compiler.nvrtc, "compileProgram", compile_program),
        patch.object(
            compiler, "_get_arch_for_options_for_nvrtc", lambda arch=None: ("-arch=sm_90", "cubin")
        ),
        patch.object(compiler, "_preprocess", lambda *_: ""),
    ):
        try:
            compiler._compile_module_with_cache("// a kernel", tuple(options), arch="90")
        except Compiled as given:
            return [option for option in given.args[0] if not option.startswith("-I")]


def main():
    import cupy
    import cupyx
    import fake_cupy
    from cupy.cuda import cublas, cusolver, device, nccl  # noqa: F401  become attributes of cupy.cuda

    modules = {"cupy": cupy, "cupyx": cupyx}
    wanted = in_source(RUNTIME.read_text(encoding="utf-8")) | in_stand_in(fake_cupy.CLASSES)
    known = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {}
    known[cupy.__version__] = {
        "names": sorted(name for name in wanted if is_in(name, modules)),
        "options": options_of_cupy(["--std=c++17", "-DSIZE=1"]),
    }
    TABLE.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for name in sorted(wanted - set(known[cupy.__version__]["names"])):
        print(f"CuPy {cupy.__version__} lacks {name}")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
