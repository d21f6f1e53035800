"""The numbers that the paper published, each written down once.

Figures are the lowest part of the package that needs them: curves show the published test errors,
and tables compare runs at the paper's errors. The plan and the claims of a reproduction, above the
figures, read them here.
"""

LEARNING_RATES = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003)
"""The set from which every method's learning rate is chosen (section 5.2)."""

WEIGHT_DECAY = {"conv1": 0.004, "conv2": 0.004, "conv3": 0.004, "fc10": 1.0}
"""Weight decay in cuda-convnet's configuration of the CIFAR-10 network."""

NETWORK_ERROR = {"CIFAR-10": 0.18, "SVHN": 0.0278}
"""Test errors of the two networks as their authors published them (Figure 1)."""

TEST_ERROR, TRAIN_ERROR, UPDATES_TRAIN_ERROR = 0.19, 0.06, 0.10
"""The errors on CIFAR-10 at which methods are compared: over time (section 5.2), and the last over
updates (section 5.3)."""

MILESTONES = (
    ("test_error", TEST_ERROR),
    ("train_error", UPDATES_TRAIN_ERROR),
    ("train_error", TRAIN_ERROR),
)
"""The same as pairs of a column of the metrics and its value."""

MINUTES = {"test_error": {"kfc": 3, "sgd": 9}, "train_error": {"kfc": 4, "sgd": 30}}
"""Minutes to TEST_ERROR and to TRAIN_ERROR on CIFAR-10 (section 5.2)."""

SVHN_MINUTES = {"kfc": (120, False), "sgd": (250, True)}
"""Minutes to SVHN's NETWORK_ERROR, and whether that is only a lower bound (section 5.2)."""

UPDATES = {"kfc": 300, "sgd": 6000}
"""Updates to UPDATES_TRAIN_ERROR on CIFAR-10, with mini-batches of 4096 (section 5.3)."""

FEWER_UPDATES = 10, 20
"""How many times fewer updates KFC-pre needs, at least and at most (the abstract)."""

EPOCH_COST = 2
"""An epoch of KFC-pre costs less than this many of SGD's (appendix B.3)."""

LOWEST_TEST_ERROR = {"kfc": 0.185, "sgd": 0.18, "kfc_small": 0.16}
"""On CIFAR-10; KFC-pre with mini-batches of 512, SGD, and KFC-pre with mini-batches of 128."""

MINUTES_OF_A_TEST_ERROR = 5
TEST_ERROR_AFTER = {"kfc": 0.185, "kfc_small": 0.175}
"""On CIFAR-10 after these minutes (section 5.2, footnote 3)."""
