"""Groups of curves that differ in one thing: how they begin, how much they decay, which method."""

import json

from kfcnet.figures import paper
from kfcnet.reproduce.plan import Curve, config_of
from kfcnet.runs.labels import STRUCTURES

COMPARED = tuple(name for name in STRUCTURES if name != "autocovariance")
"""Structures that are methods; the other one shows what the paper warns of."""

UNTUNED = ("optimizer.learning_rate=0.003",)
"""Of the starts and of the weight decays, which are chosen before the learning rate is tuned."""

NORMALISED_DECAYS = 0.1, 0.03, 0.003
"""Shares of the published weight decay that are tried with batch normalisation."""


def decays():
    """Curves with other shares of the published weight decay, which was chosen at a rate that was
    not tuned; KFC-pre's also at the one that was, since SGD's is the same.
    """

    def curve(method, share, is_tuned=False):
        overrides, words = _decay(share)
        return Curve(
            f"cifar_{method}_decay_{share:g}" + "_tuned" * is_tuned,
            f"cifar_{method}",
            overrides if is_tuned else (*UNTUNED, *overrides),
            rates=(),
            rate_of=f"cifar_{method}" if is_tuned else "",
            epochs=20,
            seeds=1,
            words=words + ", tuned rate" * is_tuned,
        )

    shares = ("kfc", 1), ("kfc", 0.3), ("kfc", 0.1), ("sgd", 1), ("sgd", 0.1)
    tuned = ("kfc", 1), ("kfc", 0.1)
    return [curve(*each) for each in shares] + [curve(*each, is_tuned=True) for each in tuned]


def normalised_decays():
    """Curves with batch normalisation and less weight decay, at the rates that were tuned with the
    usual one.

    The last layer takes in less with batch normalisation and needs larger weights for the same
    logits: the same decay is a heavier penalty of the same function.
    """
    return [
        Curve(
            f"cifar_{method}_bn_decay_{share:g}",
            f"cifar_{method}_bn",
            overrides,
            rate_of=f"cifar_{method}_bn",
            epochs=20,
            seeds=1,
            words=words,
        )
        for share in NORMALISED_DECAYS
        for overrides, words in (_decay(share),)
        for method in ("kfc", "sgd")
    ]


def _decay(share):
    """(overrides, words) of a share of the published weight decay."""
    decay = {name: round(share * value, 9) for name, value in paper.WEIGHT_DECAY.items()}
    words = f"{'all' if share == 1 else f'{share:g}'} of the published decay"
    return (f"optimizer.weight_decay={json.dumps(decay)}", "evaluation.every=0.5"), words


def starts(prefix, epoch, diagnosed, common=(), small=(), **values):
    """Curves of a few epochs that begin in different ways, without tuning.

    epoch: examples of one; diagnosed: updates of KFC-pre between two rows of diagnostics; common:
    overrides of all; small: names of the layers with initial deviations that are smaller than He's.
    """

    def warm_up(epochs):
        return (f"optimizer.schedule={{name: constant, warm_up: {epochs * epoch:g}}}",)

    momentum = 0.9
    counted = (f"optimizer.clip={0.3 * (1 - momentum) ** 2:g}",)
    fresh = ("optimizer.statistics_period=1", "optimizer.inverse_period=1")
    he = (*(f"network.{name}.std=he" for name in small), "data.input_scale=64")
    both = {
        "none": ("none", warm_up(0)),
        "fifth": ("warm-up of 0.2 epochs", warm_up(0.2)),
        "one": ("warm-up of 1 epoch", warm_up(1)),
        "two": ("warm-up of 2 epochs", warm_up(2)),
    }
    if small:
        both["he"] = "He's deviations, inputs scaled", (*warm_up(0), *he)
    kfc = {
        "clip": ("clip counting momentum", (*warm_up(0), *counted)),
        "clip_fifth": ("clip counting momentum, warm-up of 0.2 epochs", (*warm_up(0.2), *counted)),
        "fresh": ("factors and inverses at every update", (*warm_up(0), *fresh)),
    }
    return [
        Curve(
            f"{prefix}_{method}_start_{name}",
            f"{prefix}_{method}",
            (*common, *overrides, f"diagnostics.every={every}", "evaluation.every=0.5"),
            rates=(),
            epochs=3,
            words=words,
            **values,
        )
        for method, starts, every in (("kfc", both | kfc, diagnosed), ("sgd", both, 4 * diagnosed))
        for name, (words, overrides) in starts.items()
    ]


def pools(kind, *numbers):
    """Overrides that make some pools "max" or "avg" ones."""
    return tuple(f"network.pool{number}.layer={kind}_pool" for number in numbers)


def others(prefix, **values):
    """The co-ordinatewise methods, two of them also with decoupled weight decay."""
    decoupled = dict(values, words="decoupled decay")
    return [
        *(
            Curve(f"{prefix}_{name}", f"{prefix}_{name}", **values)
            for name in ("adagrad", "rmsprop", "adam")
        ),
        *(
            Curve(
                f"{prefix}_{name}w",
                f"{prefix}_{name}",
                ("optimizer.decoupled_decay=true",),
                **decoupled,
            )
            for name in ("rmsprop", "adam")
        ),
    ]


def structures(prefix, **values):
    """KFC-pre with other structures of the Fisher blocks, and with the product itself damped."""
    return [
        Curve(f"{prefix}_{name}", f"{prefix}_kfc", (override,), **values)
        for name, override in (
            *((name, f"optimizer.structure={name}") for name in COMPARED),
            ("tikhonov", "optimizer.tikhonov=exact"),
        )
    ]


def hessian_free():
    """Hessian-free optimization, by conjugate gradients with KFC as the preconditioner or none."""
    decay = config_of("cifar_kfc").optimizer.weight_decay
    return [
        Curve(
            f"cifar_free_{name}",
            "cifar_kfc",
            (
                f"optimizer={{name: hessian_free, preconditioner: {name}, batch_size: 2048, "
                f"weight_decay: {json.dumps(decay)}}}",
                "evaluation.every=0.25",
            ),
            rates=(),
            epochs=3,
            words=words,
        )
        for name, words in (("kfc", "KFC as preconditioner"), ("none", "no preconditioner"))
    ]


def scaled():
    """Both methods on inputs divided by 64, with conv1's weights and decay such that the network
    and its objective are the same functions; KFC-pre also with a thousandth of the damping, without
    which Theorem 3 holds, and with that on inputs as they are.
    """
    scale, config = 64, config_of("cifar_kfc")
    std, decay = config.network[0].std * scale, config.optimizer.weight_decay["conv1"] / scale**2
    divided = (
        f"data.input_scale={scale}",
        f"network.conv1.std={std:g}",
        f"optimizer.weight_decay.conv1={decay:g}",
    )
    weak = (f"optimizer.damping={config.optimizer.damping / 1000:g}",)
    return [
        Curve(
            f"cifar_{name}",
            f"cifar_{name[:3]}",
            (*overrides, "evaluation.every=0.5"),
            rate_of=f"cifar_{name[:3]}",
            epochs=4,
            words=words,
        )
        for name, overrides, words in (
            ("kfc_scaled", divided, "inputs / 64"),
            ("sgd_scaled", divided, "inputs / 64"),
            ("kfc_weak", weak, "damping / 1000"),
            ("kfc_scaled_weak", (*divided, *weak), "inputs / 64, damping / 1000"),
        )
    ]


def choices():
    """Both methods on the network as it is where the paper leaves its layers open."""
    normalised = tuple(
        f"network.{number}.across=true"
        for number, layer in enumerate(config_of("cifar_kfc").network)
        if layer.layer == "response_norm"
    )
    inside = tuple(f"network.pool{number}.clipped=false" for number in (1, 2, 3))
    return [
        Curve(
            f"cifar_{method}_{name}",
            f"cifar_{method}",
            (*overrides, "evaluation.every=0.5"),
            rate_of=f"cifar_{method}",
            epochs=6,
            seeds=1,
            words=words,
        )
        for method in ("kfc", "sgd")
        for name, overrides, words in (
            ("across", normalised, "normalised across maps"),
            ("inside", inside, "pools without clipped windows"),
        )
    ]
