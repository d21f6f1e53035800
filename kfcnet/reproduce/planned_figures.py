"""The figures of a reproduction: which curves each one draws, over what, and its caption."""

import math

from kfcnet.reproduce import families
from kfcnet.reproduce.families import COMPARED
from kfcnet.reproduce.plan import FigurePlan, PanelPlan


def figures(main, *others):
    """{name: FigurePlan}; each data set has a row in fig1 and a panel in fig2."""
    letters = iter("abcdefgh")
    prefixes = (main, *others)
    fig1 = tuple(
        PanelPlan(next(letters), quantity, (f"{prefix}_kfc", f"{prefix}_sgd"))
        for prefix in prefixes
        for quantity in ("loss", "error")
    )
    fig2 = tuple(
        PanelPlan(letter, "error", (f"{prefix}_kfc_large", f"{prefix}_sgd_large"), "updates", True)
        for letter, prefix in zip("ab", prefixes, strict=False)
    )
    normalised = tuple(f"{main}_{name}" for name in ("kfc", "sgd", "kfc_bn", "sgd_bn"))
    methods = tuple(
        f"{main}_{name}"
        for name in ("kfc", "sgd", "kfac", "adam", "rmsprop", "adagrad", "adamw", "rmspropw")
    )
    structures = tuple(f"{main}_{name}" for name in ("kfc", *COMPARED, "tikhonov"))
    pair = f"{main}_kfc", f"{main}_sgd"
    starts = tuple(curve.name for curve in families.starts(main, 1, 1, small=others))
    of_cifar = {}
    if main == "cifar":
        shares, normalised_shares, free, scaled, choices = (
            tuple(curve.name for curve in group)
            for group in (
                families.decays(),
                families.normalised_decays(),
                families.hessian_free(),
                families.scaled(),
                families.choices(),
            )
        )
        of_cifar = {
            "decay": FigurePlan(
                "The weight decay",
                _loss_and_error(shares, "epochs"),
                caption="Loss and error with shares of the published weight decay, at a learning "
                "rate of 0.003 that was not tuned (SGD's tuned one is the same), or of KFC-pre "
                "also at its *tuned rate*, one seed each.",
            ),
            "batchnorm_decay": FigurePlan(
                "Batch normalisation with less weight decay",
                tuple(
                    PanelPlan(letter, "error", (one, *normalised_shares[first::2]), "epochs")
                    for first, (letter, one) in enumerate(zip("ab", normalised[2:], strict=True))
                ),
                caption="Error of KFC-pre (a) and of SGD (b) over epochs, with the usual 0.3 of "
                "the published weight decay, and with less of it at the same learning rates, one "
                "seed each. The last layer takes in less with batch normalisation, and needs "
                "larger weights for the same logits: the same decay is a heavier penalty.",
            ),
            "free": FigurePlan(
                "Hessian-free optimization, with and without KFC (section 3.2)",
                _loss_and_error(free, "updates"),
                caption="Loss and error over updates, each of several products with F.",
            ),
            "autoencoder": FigurePlan(
                "K-FAC and SGD on a dense autoencoder (Martens and Grosse 2015)",
                (
                    *_loss_and_error(("autoencoder_kfac", "autoencoder_sgd"), "updates"),
                    PanelPlan("c", "error", ("autoencoder_kfac", "autoencoder_sgd"), "epochs"),
                ),
                caption="Loss (a) and error (b) over updates, error over epochs (c). The loss is "
                "half the squared error, summed over 64 pixels; the error is the mean squared "
                "error of a pixel in percent of one, which is about a pixel's variance: it begins "
                "above 100%.",
            ),
            "autocovariance": FigurePlan(
                "Empirical autocovariances plugged into Eq. 19 (section 3.1)",
                _loss_and_error(("cifar_kfc", "cifar_autocovariance"), "updates", "ab", True),
                caption="Loss and error over updates, with Omega as KFC computes it (Theorem 2) "
                "and from empirical autocovariances.",
            ),
            "invariance": FigurePlan(
                "Inputs as they are and divided by 64 (section 4.1)",
                _loss_and_error((*pair, *scaled), "epochs", until=4),
                caption="Loss and error over the first four epochs. With divided inputs conv1's "
                "initial weights are 64 times as large and its weight decay is smaller by 64^2: "
                "network and objective are the same functions at the start, and a method that is "
                "invariant draws one curve. Learning rates are those tuned with inputs as they "
                "are.",
            ),
            "choices": FigurePlan(
                "What the paper leaves open: response normalisation and pooling",
                _loss_and_error((*pair, *choices), "epochs", until=6),
                caption="Loss and error over the first six epochs. The changed networks have one "
                "seed; where their curves lie on those of the network as it is, the choice does "
                "not matter.",
            ),
        }
    return {
        "fig1": FigurePlan(
            "KFC-pre and SGD over time (the paper's Figure 1)",
            fig1,
            caption="Loss (left) and error (right) over training time, which is epochs times the "
            "measured cost of one.",
        ),
        "fig2": FigurePlan(
            "KFC-pre and SGD over updates, with large mini-batches (Figure 2)",
            fig2,
            caption="Error over updates, both on logarithmic axes. KFC-pre renews factors and "
            "inverses at every update here, in Figure 1 at every fifth.",
        ),
        "assumptions": FigurePlan(
            "The assumptions (section 5.1, appendix D.1)",
            kind="assumptions",
            caption="*Max pooling* and *average pooling* are networks whose pools are all of that "
            "kind. CIFAR-10's published one has one max pool and then two averages, SVHN's has max "
            "pools. First picture: mean absolute correlation of two locations in one map, over "
            "their distance in a row or a column; below, how far approximations of the Fisher "
            "block of one small layer are from the exact one. Other pictures: absolute "
            "correlations in one trained network, of derivatives on the left and of activations "
            "on the right; by offset in three maps (the middle is offset 0), and between all maps "
            "at one location.",
        ),
        "batchnorm": FigurePlan(
            "With and without batch normalisation (appendix D.2)",
            _loss_and_error(normalised),
            caption="Loss and error over training time.",
        ),
        "minibatch": FigurePlan(
            "KFC-pre with smaller mini-batches (section 5.2, footnote 3)",
            _loss_and_error((*pair, f"{main}_kfc_small"), "epochs"),
            caption="Loss and error over epochs: an epoch of KFC-pre has four times as many "
            "updates with the smaller mini-batches. Factors and inverses are renewed every 20 "
            "updates there and every 5 with the larger ones, on as many examples of an epoch.",
        ),
        "methods": FigurePlan(
            "Full K-FAC and co-ordinatewise methods (section 5.2)",
            (*_loss_and_error(methods), *_loss_and_error(methods, "updates", "cd", True)),
            caption="Loss (left) and error (right), above over time or epochs, below over updates.",
        ),
        "structures": FigurePlan(
            "Other structures of the Fisher blocks (section 4.2, appendix C)",
            _loss_and_error(structures, "updates"),
            caption="Loss and error over updates.",
        ),
        "sensitivity": FigurePlan(
            "Sensitivity to the learning rate",
            (PanelPlan("a", "error", pair),),
            "tuning",
            "Training error of the averaged parameters after each stage of the tuning, at the "
            "learning rates that were tried in it; the best ones are taken further.",
        ),
        "starts": FigurePlan(
            "How training begins",
            (PanelPlan("a", "error", starts, "epochs"),),
            "starts",
            "Above: training error of the latest parameters, which are not averaged. Below: dead "
            "maps, all layers together. Each seed is a line; the learning rate was not tuned.",
        ),
        "scaling": FigurePlan(
            "Large mini-batches on more than one processor (section 5.3)",
            (PanelPlan("a", "error", (*pair, *(f"{name}_large" for name in pair))),),
            "scaling",
            "Seconds to a training error, updates times seconds of one, over the number of "
            "processes, on logarithmic axes: measured on the left, modelled on the right.",
        ),
        **of_cifar,
    }


def _loss_and_error(curves, x="seconds", letters="ab", is_logarithmic=False, until=math.inf):
    """Two panels of the same curves, of the loss and of the error."""
    return tuple(
        PanelPlan(letter, quantity, curves, x, is_logarithmic, until)
        for letter, quantity in zip(letters, ("loss", "error"), strict=True)
    )
