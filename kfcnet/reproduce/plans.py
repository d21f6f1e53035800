"""The plans of a reproduction: whole on a GPU, shortened on a CPU, quick on the digits."""

from kfcnet.figures import paper
from kfcnet.reproduce import families
from kfcnet.reproduce.families import UNTUNED, pools
from kfcnet.reproduce.plan import STAGES, Curve, Errors, Measurement, Plan, config_of
from kfcnet.reproduce.planned_figures import figures
from kfcnet.reproduce.verdicts import PAIRS
from kfcnet.training.tuning import Stage

CLIPS = (0.03, 0.1, 0.3, 1.0)
"""Values of C that are tried where the clip is the step size."""

DAMPINGS = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Of K-FAC, with which lambda and gamma^2 begin and below which neither falls."""

LOW_RATES = (0.0001, 0.00003)
"""Added for co-ordinatewise methods: their steps do not shrink with the small initial weights."""


def make_plan(device, quick=False, seeds=None, overrides=()):
    """The Plan for a device, "cpu" or "cuda".

    seeds: number of seeds of every curve, in place of the planned one; overrides: for every run.
    """
    plan = _quick() if quick else _published() if device == "cuda" else _shortened()
    whole = plan.curves if quick else _published().curves
    curves = {
        name: _seeded(curve, curve.seeds if seeds is None else seeds, whole[name].seeds)
        for name, curve in plan.curves.items()
    }
    return plan._replace(device=device, overrides=tuple(overrides), curves=curves)


def _seeded(curve, seeds, whole):
    """A Curve with `seeds` seeds, which says if these are fewer than `whole`."""
    shortened = [f"{seeds} of {whole} seeds"] if seeds < whole else []
    shortened += [curve.shortened] if curve.shortened else []
    return curve._replace(seeds=seeds, shortened=", ".join(shortened))


def _published():
    """The whole plan: as in the paper where it says how, otherwise as long as the curves need."""
    large = ("optimizer.batch_size=4096",)
    # A quarter of a mini-batch at every fifth update would be the same share of the examples. But
    # Figure 2 counts updates, so factors and inverses are renewed at every one of them.
    large_kfc = (
        *large,
        "optimizer.statistics_fraction=0.125",
        "optimizer.statistics_period=1",
        "optimizer.inverse_period=1",
    )
    # Per epoch the same number of examples for the statistics and of inversions as with M = 512.
    small_kfc = (
        "optimizer.batch_size=128",
        "optimizer.statistics_fraction=1.0",
        "optimizer.statistics_period=20",
        "optimizer.inverse_period=20",
    )
    svhn = (Stage(0.5, None), Stage(2.0, 3))
    # docs/rules.md says why these, and why both methods have the same.
    main, whole = dict(grows=True, seeds=5), Stage(60.0, 1)
    diagnosed = ("diagnostics.every=98", "evaluation.every=0.5")
    # Updates of 4096 images: twelve an epoch.
    long = dict(stages=(Stage(4.0, None), Stage(12.0, 3), Stage(40.0, 2)), grows=True)
    curves = [
        *families.starts("cifar", 50000, 49, UNTUNED, ("conv1", "conv2", "conv3", "fc10"), seeds=2),
        Curve("cifar_kfc", "cifar_kfc", diagnosed, epochs=20, **main, clips=CLIPS),
        # The last stage is as long as the final runs, for KFC-pre too.
        Curve("cifar_sgd", "cifar_sgd", diagnosed, **main, stages=(*STAGES, whole)),
        *families.decays(),
        Curve("svhn_kfc", "svhn_kfc", stages=svhn, clips=CLIPS),
        Curve("svhn_sgd", "svhn_sgd", stages=svhn),
        Curve("cifar_kfc_large", "cifar_kfc", large_kfc, epochs=60, **long, clips=CLIPS),
        Curve("cifar_sgd_large", "cifar_sgd", large, epochs=500, **long),
        Curve("svhn_kfc_large", "svhn_kfc", large_kfc, stages=svhn, epochs=15, clips=CLIPS),
        Curve("svhn_sgd_large", "svhn_sgd", large, stages=svhn, epochs=60),
        Curve("cifar_kfc_bn", "cifar_kfc_bn", epochs=20, grows=True, clips=CLIPS),
        Curve("cifar_sgd_bn", "cifar_sgd_bn", ("evaluation.every=0.5",), grows=True),
        *families.normalised_decays(),
        *families.others("cifar", rates=(*paper.LEARNING_RATES, *LOW_RATES)),
        Curve("cifar_kfac", "cifar_kfac", rates=(), dampings=DAMPINGS, grows=True, epochs=20),
        *families.hessian_free(),
        Curve("cifar_kfc_small", "cifar_kfc", small_kfc, grows=True, clips=CLIPS),
        *families.structures("cifar", clips=CLIPS),
        *families.scaled(),
        *families.choices(),
        Curve(
            "cifar_autocovariance",
            "cifar_kfc",
            ("optimizer.structure=autocovariance", "evaluation.every=0.5"),
            rate_of="cifar_kfc",
            epochs=3,
        ),
        Curve("autoencoder_kfac", "digits_autoencoder_kfac", rates=()),
        Curve(
            "autoencoder_sgd",
            "digits_autoencoder_sgd",
            grows=True,
            stages=(Stage(10.0, None), Stage(30.0, 3), Stage(60.0, 2)),
        ),
        Curve("cifar_sgd_max", "cifar_sgd", pools("max", 2, 3), rate_of="cifar_sgd", seeds=1),
        Curve("cifar_sgd_avg", "cifar_sgd", pools("avg", 1), rate_of="cifar_sgd", seeds=1),
        Curve("svhn_sgd_avg", "svhn_sgd", pools("avg", 1, 2, 3), rate_of="svhn_sgd", seeds=1),
        Curve("tiny_max", "cifar_tiny", rates=(), seeds=1),
        Curve("tiny_avg", "cifar_tiny", pools("avg", 1, 2), rates=(), seeds=1),
    ]
    measurements = (
        Measurement("cifar_sgd", "CIFAR-10", "published", 500, 7),
        Measurement("cifar_sgd_max", "CIFAR-10", "max", 500, 7),
        Measurement("cifar_sgd_avg", "CIFAR-10", "average", 500, 7),
        Measurement("svhn_sgd", "SVHN", "max", 250, 7),
        Measurement("svhn_sgd_avg", "SVHN", "average", 250, 7),
        Measurement("tiny_max", "CIFAR-10", "max", 200, 3, "conv2"),
        Measurement("tiny_avg", "CIFAR-10", "average", 200, 3, "conv2"),
    )
    return Plan(
        {curve.name: curve for curve in curves},
        figures("cifar", "svhn"),
        measurements,
        "cifar",
        "CIFAR-10",
        Errors(paper.TEST_ERROR, paper.TRAIN_ERROR, paper.UPDATES_TRAIN_ERROR),
        "cuda",
        note=_decay_note(),
    )


def _decay_note():
    """In words: how the main curves' weight decay differs from the published one."""
    decays = config_of("cifar_kfc").optimizer.weight_decay
    (share,) = {
        round(decays[name] / published, 9) for name, published in paper.WEIGHT_DECAY.items()
    }
    return (
        f"The networks on CIFAR-10 decay their weights by {share:g} of what cuda-convnet's "
        "configuration has, for both methods: the largest of the shares 1, 0.3 and 0.1 with which "
        "KFC-pre, at a learning rate of 0.003, comes to 6% training error within 20 epochs (figure "
        "*The weight decay*)."
    )


def _shortened():
    """A plan for a CPU, with less of most curves; each says what it leaves out."""
    plan = _published()
    five, time = paper.LEARNING_RATES[1:6], "to be done in hours"
    dear = "an update takes dozens of products with F"
    twice = dict(seeds=2, epochs=20, shortened=time)
    judged = dict(twice, seeds=PAIRS)  # where the paper says something, and fewer leave it open
    # With few images, an average over 50,000 examples keeps the initial parameters for epochs, a
    # rise over 50,000 takes six of them, and a period of 100 updates is longer than the run. With a
    # damping of 1e-3 every step of the first epochs fits its own mini-batch (14 million parameters,
    # 512 images) and is clipped, to the same length at every learning rate.
    few = (
        "data.extra=false",
        "evaluation.every=1",
        "optimizer.averaging_timescale=5000",
        "optimizer.schedule.warm_up=8000",
    )
    few_kfc = (
        *few,
        "optimizer.statistics_timescale=10000",
        "optimizer.statistics_period=5",
        "optimizer.inverse_period=10",
        "optimizer.damping=0.1",
    )
    why = (
        "the network takes twelve times the arithmetic of CIFAR-10's, and the extra images are "
        "seven eighths of all; with few images averages are shorter"
    )
    # In its first two epochs SGD predicts the most frequent digit, at any learning rate.
    stages = (Stage(3.0, None), Stage(8.0, 2))
    svhn = dict(seeds=3, rates=five, stages=stages, epochs=20, shortened=why)
    svhn_kfc = svhn | dict(epochs=12, shortened=f"{why}, inverses fresher and the damping larger")
    large = dict(rates=five, shortened="as many updates as in the paper would take a day")
    lost = "0.01, the best of the tuning, was lost after 64 epochs on another processor (`again/`)"
    others = dict(judged, rates=(0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001))
    changes = {
        "svhn_kfc": (few_kfc, svhn_kfc),
        "svhn_sgd": (few, svhn),
        "svhn_sgd_avg": (few, dict(epochs=12, shortened=why)),
        "cifar_kfc_large": ((), large | dict(epochs=40)),
        "cifar_sgd_large": (
            (),
            large | dict(epochs=415, lost=(0.01,), shortened=f"{large['shortened']}; {lost}"),
        ),
        "cifar_kfc_bn": ((), dict(judged, rates=five)),
        "cifar_sgd_bn": ((), dict(judged, rates=five)),
        "cifar_kfc_small": ((), dict(judged, rates=five, epochs=30)),
        **{
            curve.name: ((), dict(seeds=2, epochs=1, shortened=dear))
            for curve in families.hessian_free()
        },
        **{curve.name: ((), others) for curve in families.others("cifar")},
        **{
            curve.name: ((), dict(twice, rates=paper.LEARNING_RATES[2:]))
            for curve in families.structures("cifar")
        },
        **{
            name: ((), dict(epochs=16, shortened="correlations need no network at its best"))
            for name in ("cifar_sgd_max", "cifar_sgd_avg")
        },
    }
    left_out = {
        name: "hundreds of updates of 4096 images, with twelve times the arithmetic of "
        "CIFAR-10's network, would take a CPU hours"
        for name in ("svhn_kfc_large", "svhn_sgd_large")
    }
    curves = {name: curve for name, curve in plan.curves.items() if name not in left_out}
    for name, (overrides, values) in changes.items():
        curves[name] = _change(curves[name], overrides, values)
    return plan._replace(curves=curves, device="cpu", left_out=left_out)


def _change(whole, overrides, values):
    """A Curve with other values, which says what is shorter (seeds aside) and why."""
    curve = whole._replace(overrides=(*whole.overrides, *overrides), **values)
    parts = []
    before, after = (
        one.epochs or config_of(one.config, one.overrides).epochs for one in (whole, curve)
    )
    if after < before:
        parts.append(f"{after:g} of {before:g} epochs")
    if curve.tuned_values:
        if len(curve.rates) < len(whole.rates):
            at_first = " to begin with" if curve.grows else ""
            parts.append(f"{len(curve.rates)} of {len(whole.rates)} learning rates{at_first}")
        ends = [" and ".join(f"{stage.epochs:g}" for stage in one.stages) for one in (curve, whole)]
        if curve.stages != whole.stages:
            parts.append(f"tuned after {ends[0]} epochs in place of {ends[1]}")
    parts += [f"`{override}`" for override in overrides]
    return curve._replace(shortened=": ".join(filter(None, [", ".join(parts), curve.shortened])))


def _quick():
    """The same in minutes, on the digits that come with the package."""
    few = dict(
        rates=(0.1, 0.03, 0.01),
        stages=(Stage(1.0, None), Stage(3.0, 2)),
        epochs=6,
        seeds=2,
        shortened="few rates, epochs and seeds, for the sake of a quick run",
    )
    once = few | dict(seeds=1)
    fixed = once | dict(rates=())
    large = ("optimizer.batch_size=720",)
    large_kfc = (*large, "optimizer.statistics_period=1", "optimizer.inverse_period=1")
    small_kfc = (
        "optimizer.batch_size=32",
        "optimizer.statistics_fraction=1.0",
        "optimizer.statistics_period=4",
        "optimizer.inverse_period=8",
    )
    curves = [
        *families.starts("digits", 1437, 5, shortened=few["shortened"], seeds=1),
        Curve("digits_kfc", "digits_kfc", **few),
        Curve("digits_sgd", "digits_sgd", **few),
        Curve("digits_kfc_large", "digits_kfc", large_kfc, **once),
        Curve("digits_sgd_large", "digits_sgd", large, **once | dict(epochs=12)),
        Curve("digits_kfc_bn", "digits_kfc_bn", **once),
        Curve("digits_sgd_bn", "digits_sgd_bn", **once),
        *families.others("digits", **once | dict(rates=(0.01, 0.001))),
        Curve("digits_kfac", "digits_kfac", **fixed),
        Curve("digits_kfc_small", "digits_kfc", small_kfc, **once | dict(rates=(0.01, 0.003))),
        *families.structures("digits", **once),
        Curve("digits_sgd_avg", "digits_sgd", pools("avg", 1), **once, rate_of="digits_sgd"),
        Curve("tiny_max", "digits_tiny", **fixed),
        Curve("tiny_avg", "digits_tiny", pools("avg", 1, 2), **fixed),
    ]
    measurements = (
        Measurement("digits_sgd", "UCI digits", "max", 360, 3),
        Measurement("digits_sgd_avg", "UCI digits", "average", 360, 3),
        Measurement("tiny_max", "UCI digits", "max", 360, 2, "conv2"),
        Measurement("tiny_avg", "UCI digits", "average", 360, 2, "conv2"),
    )
    return Plan(
        {curve.name: curve for curve in curves},
        figures("digits"),
        measurements,
        "digits",
        "UCI digits",
        Errors(test=0.06, train=0.03, updates=0.05),
        "cpu",
        note="This is a quick run on the embedded digits. It shows that every step from a "
        "configuration to this page works; its numbers stand beside the paper's only "
        "because they are made the same way.",
    )
