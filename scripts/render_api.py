"""Write docs/api.md: signatures and docstrings of the public functions, an example of each.

The examples go on from each other; tests/test_api.py runs them and compares the page.
"""

import ast
import importlib
import inspect
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the docstrings of this checkout

HEAD = """# The functions of kfcnet

<!-- written by scripts/render_api.py from the docstrings; do not edit -->

Shapes are in brackets: M images of H x W pixels and C channels, J maps in, I maps out, kernels of
K x K. Every example goes on from those before it, and from `images` (M, H, W, C), uint8, and
`labels` (M,). [From Python](python.md) tells how these functions go together.
"""

ENTRIES = {
    "Train and use": {
        "kfcnet.fit": """
            import kfcnet
            from kfcnet.layers import Conv2d, Dense, ReLU

            layers = [Conv2d.of(filters=4, kernel=3), ReLU, Dense]
            run = kfcnet.fit(images, labels, layers, epochs=1, out="run")
            """,
        "kfcnet.load": """
            assert (kfcnet.load("run").predict(images) == run.predict(images)).all()
            """,
        "kfcnet.training.fit:FittedNetwork.save": 'run.save("copy")',
        "kfcnet.training.fit:FittedNetwork.predict": """
            assert run.predict(images[:3]).shape == (3,)
            """,
        "kfcnet.training.fit:FittedNetwork.predict_proba": """
            assert abs(run.predict_proba(images[:3]).sum() - 3) < 1e-5
            """,
        "kfcnet.training.fit:FittedNetwork.logits": """
            assert (run.logits(images).argmax(axis=1) == run.predict(images)).all()
            """,
        "kfcnet.training.fit:FittedNetwork.evaluate": """
            loss, error = run.evaluate(images, labels)
            assert 0 <= error <= 1
            """,
        "kfcnet.training.fit:FittedNetwork.to_arrays": """
            arrays = run.to_arrays()
            assert arrays["conv1.weight"].shape == (4, 3, 3, images.shape[-1])
            """,
        "kfcnet.training.fit:FittedNetwork.from_arrays": """
            assert (run.from_arrays(arrays).logits(images) == run.logits(images)).all()
            """,
        "kfcnet.training.fit:FittedNetwork.to_torch": """
            try:
                module = run.to_torch()
            except ImportError as error:  # without PyTorch
                print(error)
            """,
        "kfcnet.training.fit:FittedNetwork.to_onnx": """
            try:
                run.to_onnx("network.onnx")
            except ImportError as error:  # without the package onnx
                print(error)
            """,
    },
    "Run what a file describes": {
        "kfcnet.load_config": """
            config = kfcnet.load_config("digits_sgd", ["epochs=0.2", "device=cpu"])
            """,
        "kfcnet.train": 'kfcnet.train(config, "digits")',
        "kfcnet.load_run": """
            assert kfcnet.load_run("digits").config.data.name == "digits"
            """,
        "kfcnet.data:from_arrays": """
            from kfcnet.data import from_arrays

            dataset = from_arrays(images, labels, test_share=0.25)
            assert len(dataset.test_labels) == round(len(labels) / 4)
            """,
    },
    "Layers, networks, optimizers": {
        "kfcnet.check_layer": """
            print(kfcnet.check_layer(Conv2d.of(filters=4, kernel=3, stride=2), (7, 6, 3)))
            """,
        "kfcnet.layers:Layer.of": "layers = [Conv2d.of(filters=4, kernel=3), Dense.of(units=10)]",
        "kfcnet.get_ops": 'ops = kfcnet.get_ops("cpu", "float64")',
        "kfcnet.build_network": """
            specification = [{"layer": "conv", "filters": 4, "kernel": 3}, {"layer": "relu"}]
            specification += [{"layer": "dense", "units": 10}]
            network = kfcnet.build_network(specification, images.shape[1:], ops)
            """,
        "kfcnet.build_optimizer": """
            import numpy as np

            from kfcnet.batches import Batch
            from kfcnet.config.schema import KfcPreConfig
            from kfcnet.losses import SoftmaxCrossEntropy

            loss = SoftmaxCrossEntropy(ops)
            inputs = ops.asarray((images[:32] - images.mean(axis=0)) / images.std())
            batch = Batch(inputs, labels[:32].astype(np.int32))
            settings = KfcPreConfig(learning_rate=0.03, damping="auto")
            optimizer = kfcnet.build_optimizer(settings, network, loss)
            optimizer.prepare([batch])
            optimizer.step(batch)
            """,
    },
    "The curvature, for arrays of any framework": {
        "kfcnet.curvature:input_factor": """
            from kfcnet.curvature import input_factor

            rng = np.random.default_rng(0)
            activations = rng.standard_normal((8, 7, 6, 2))
            Omega = input_factor(activations, kernel_size=3, padding=1)
            assert Omega.shape == (19, 19)
            """,
        "kfcnet.curvature:derivative_factor": """
            from kfcnet.curvature import derivative_factor

            derivatives = rng.standard_normal((8, 7, 6, 4))
            Gamma = derivative_factor(derivatives)
            assert Gamma.shape == (4, 4)
            """,
        "kfcnet.curvature:damping_floor": """
            from kfcnet.curvature import damping_floor

            assert damping_floor(Omega, Gamma) < 0.01
            """,
        "kfcnet.curvature:damped_inverses": """
            from kfcnet.curvature import damped_inverses

            inverses = damped_inverses(Omega, Gamma, c=0.01)
            """,
        "kfcnet.curvature:precondition": """
            from kfcnet.curvature import precondition

            assert precondition(rng.standard_normal((4, 19)), *inverses).shape == (4, 19)
            """,
        "kfcnet.curvature:KroneckerFisher.from_arrays": """
            from kfcnet.curvature import KroneckerFisher

            layer = dict(inputs=activations, derivatives=derivatives, kernel_size=3, padding=1)
            fisher = KroneckerFisher.from_arrays([layer])
            assert fisher.shape == (76, 76)
            """,
        "kfcnet.curvature:KroneckerFisher.solve": """
            v = rng.standard_normal(76)
            assert np.allclose(fisher @ fisher.solve(v, 0.1) + 0.1 * fisher.solve(v, 0.1), v)
            """,
        "kfcnet.curvature:KroneckerFisher.damped": """
            natural_gradient = fisher.damped(0.01).inverse() @ v
            """,
        "kfcnet.curvature:KroneckerFisher.eigenvalues": """
            assert np.isclose(fisher.eigenvalues().sum(), fisher.trace())
            """,
        "kfcnet.curvature:KroneckerFisher.estimate": """
            own = KroneckerFisher.estimate(network, loss, inputs, draws=None)
            """,
        "kfcnet.curvature:FisherOperator": """
            from kfcnet.curvature import FisherOperator

            exact = FisherOperator(network, loss, inputs)
            assert exact.shape == own.shape
            """,
    },
}


def page() -> str:
    """The text of docs/api.md."""
    parts = [HEAD]
    for title, entries in ENTRIES.items():
        parts.append(f"## {title}\n")
        parts += [_entry(name, example) for name, example in entries.items()]
    return "\n".join(parts)


def _entry(name, example):
    module, _, path = name.partition(":")
    if not path:
        module, _, path = name.rpartition(".")
    found = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    text = inspect.getdoc(found)
    if inspect.isclass(found):
        text += "\n\n" + inspect.getdoc(found.__init__)
    return (
        f"### {path}\n\n```python\n{_signature(found, path)}\n```\n\n{text}\n\n"
        f"<!-- api -->\n```python\n{textwrap.dedent(example).strip()}\n```\n"
    )


def _signature(function, path):
    """As the source has it, one argument a line where a line is too short for all."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    if isinstance(tree, ast.ClassDef):
        tree = next(node for node in tree.body if getattr(node, "name", None) == "__init__")
    arguments = tree.args
    if arguments.args and arguments.args[0].arg in ("self", "cls"):
        del arguments.args[0]
    is_class = tree.name == "__init__"
    returns = f" -> {ast.unparse(tree.returns)}" if tree.returns and not is_class else ""
    whole = f"{path}({ast.unparse(arguments)}){returns}"
    if len(whole) <= 100:
        return whole
    lines = [f"    {argument}," for argument in _arguments(arguments)]
    return "\n".join([f"{path}(", *lines, f"){returns}"])


def _arguments(arguments):
    """Each argument of a signature as text."""
    plain, defaults = arguments.args, arguments.defaults
    for index, argument in enumerate(plain):
        default = index - (len(plain) - len(defaults))
        yield _argument(argument, defaults[default] if default >= 0 else None)
    if arguments.kwonlyargs:
        yield "*"
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield _argument(argument, default)
    if arguments.kwarg:
        yield f"**{ast.unparse(arguments.kwarg)}"


def _argument(argument, default):
    return ast.unparse(argument) + (f" = {ast.unparse(default)}" if default is not None else "")


if __name__ == "__main__":
    (ROOT / "docs" / "api.md").write_text(page(), encoding="utf-8")
