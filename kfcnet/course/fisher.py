"""Chapter 1: scores, Fisher matrices, the natural gradient."""

import numpy as np
from scipy.special import softmax

from kfcnet.course.exercise import Exercise


def _one_hot(y, C):
    return np.eye(C)[y]


def _score(z, y):
    return softmax(z, axis=1) - _one_hot(y, z.shape[1])


def _score_cases(rng):
    return [
        {"z": rng.normal(size=(M, C)), "y": rng.integers(C, size=M)} for M, C in ((5, 3), (4, 6))
    ]


def _output_fisher(p):
    """F_R (M, C, C) = diag(p) - p p^T of every example."""
    return p[:, :, None] * np.eye(p.shape[1]) - p[:, :, None] * p[:, None, :]


def _through(J, F_R):
    """J^T F_R J of every example, (M, n, n)."""
    return np.swapaxes(J, 1, 2) @ F_R @ J


def _fisher_cases(rng):
    return [
        {"J": rng.normal(size=(M, C, n)), "p": softmax(rng.normal(size=(M, C)), axis=1)}
        for M, C, n in ((5, 3, 4), (4, 2, 5))
    ]


def _draw(p, u):
    return (p.cumsum(axis=1) <= u[:, None]).sum(axis=1)


def _gradients(J, p, y):
    """The gradient of each example's own loss at the labels y, (M, n)."""
    return np.einsum("mcn,mc->mn", J, p - _one_hot(y, p.shape[1]))


def _second_moment(g):
    return g.T @ g / len(g)


def _sampled_cases(rng):
    return [
        {
            "J": rng.normal(size=(M, C, n)),
            "p": softmax(rng.normal(size=(M, C)), axis=1),
            "labels": rng.integers(C, size=M),
            "u": rng.random(M),
        }
        for M, C, n in ((7, 3, 4), (9, 4, 3))
    ]


def _step_cases(rng):
    cases = []
    for n, damping, learning_rate in ((4, 0.3, 0.1), (3, 2.0, 0.7)):
        root = rng.normal(size=(n, n + 2))
        case = {"F": root @ root.T, "g": rng.normal(size=n)}
        cases.append({**case, "damping": damping, "learning_rate": learning_rate})
    return cases


def _solve(F, g, damping):
    return np.linalg.solve(F + damping * np.eye(len(F)), g)


EXERCISES = {
    "1.1": Exercise(
        _score_cases,
        _score,
        {
            "The sign is wrong: this is the derivative of log p, not of -log p.": lambda z, y: (
                -_score(z, y)
            ),
            "A 1/M too much: D is the derivative of one example's own loss, not of the mean.": (
                lambda z, y: _score(z, y) / len(z)
            ),
            "The softmax is missing: logits stand where probabilities belong.": lambda z, y: (
                z - _one_hot(y, z.shape[1])
            ),
            "The label is missing: this is the same for every y.": lambda z, y: softmax(z, axis=1),
            "The softmax goes over the examples; it goes over the classes of one example.": (
                lambda z, y: softmax(z, axis=0) - _one_hot(y, z.shape[1])
            ),
        },
    ),
    "1.2": Exercise(
        _fisher_cases,
        lambda J, p: _through(J, _output_fisher(p)).mean(axis=0),
        {
            "A missing 1/M: the Fisher matrix is a mean over the examples.": lambda J, p: _through(
                J, _output_fisher(p)
            ).sum(axis=0),
            "The term p p^T of F_R is missing: the score has a mean of zero, this has not.": (
                lambda J, p: _through(J, p[:, :, None] * np.eye(p.shape[1])).mean(axis=0)
            ),
            "The term diag(p) of F_R is missing.": lambda J, p: _through(
                J, -p[:, :, None] * p[:, None, :]
            ).mean(axis=0),
            "F_R is diagonal here: one draw decides about all classes, so F_R has -p_c p_d beside "
            "its diagonal.": lambda J, p: _through(
                J, (p * (1 - p))[:, :, None] * np.eye(p.shape[1])
            ).mean(axis=0),
            "F_R is the identity here: that is the Fisher matrix of a squared error.": (
                lambda J, p: _through(J, np.eye(p.shape[1])).mean(axis=0)
            ),
            "The mean over examples is taken too early: of J and p, and not of the product.": (
                lambda J, p: _through(J.mean(axis=0)[None], _output_fisher(p.mean(axis=0)[None]))[0]
            ),
        },
    ),
    "1.3": Exercise(
        _sampled_cases,
        lambda J, p, labels, u: _second_moment(_gradients(J, p, _draw(p, u))),
        {
            "This is the empirical Fisher matrix: its targets are the labels, not samples from the "
            "model.": lambda J, p, labels, u: _second_moment(_gradients(J, p, labels)),
            "The targets are the most probable classes; they have to be drawn, by u.": (
                lambda J, p, labels, u: _second_moment(_gradients(J, p, p.argmax(axis=1)))
            ),
            "This is the exact matrix, one backward pass for each class; here one pass has to do, "
            "at the class that u draws.": lambda J, p, labels, u: _through(
                J, _output_fisher(p)
            ).mean(axis=0),
            "Every class is drawn equally often; the model's probabilities have to decide.": (
                lambda J, p, labels, u: _second_moment(
                    _gradients(J, p, (u * p.shape[1]).astype(int))
                )
            ),
            "The mean gradient is taken out; the Fisher matrix is a second moment about zero.": (
                lambda J, p, labels, u: np.cov(_gradients(J, p, _draw(p, u)).T, bias=True)
            ),
            "A 1/M^2 too much: gradients are those of each example's own loss, not of the mean.": (
                lambda J, p, labels, u: _second_moment(_gradients(J, p, _draw(p, u)) / len(p))
            ),
            "The product is transposed: this pairs examples, the matrix pairs parameters.": (
                lambda J, p, labels, u: (
                    len(J[0, 0]) / len(p) * _second_moment(_gradients(J, p, _draw(p, u)).T)
                )
            ),
            "A missing 1/M: the Fisher matrix is a mean over the examples.": (
                lambda J, p, labels, u: len(p) * _second_moment(_gradients(J, p, _draw(p, u)))
            ),
            "This is the outer product of the mean gradient; it should be the mean of the outer "
            "products.": lambda J, p, labels, u: np.outer(
                *[_gradients(J, p, _draw(p, u)).mean(axis=0)] * 2
            ),
        },
    ),
    "1.4": Exercise(
        _step_cases,
        lambda F, g, damping, learning_rate: -learning_rate * _solve(F, g, damping),
        {
            "The sign is wrong: this step goes uphill.": lambda F, g, damping, learning_rate: (
                learning_rate * _solve(F, g, damping)
            ),
            "The damping is missing.": lambda F, g, damping, learning_rate: (
                -learning_rate * _solve(F, g, 0.0)
            ),
            "The matrix is multiplied with the gradient; its inverse should be.": (
                lambda F, g, damping, learning_rate: (
                    -learning_rate * (F + damping * np.eye(len(F))) @ g
                )
            ),
            "The damping is added to every entry; it belongs on the diagonal.": (
                lambda F, g, damping, learning_rate: (
                    -learning_rate * np.linalg.solve(F + damping, g)
                )
            ),
            "The damping is added to the inverse; it belongs to the matrix before the inversion.": (
                lambda F, g, damping, learning_rate: (
                    -learning_rate * (np.linalg.inv(F) + damping * np.eye(len(F))) @ g
                )
            ),
            "The learning rate is missing.": lambda F, g, damping, learning_rate: (
                -_solve(F, g, damping)
            ),
        },
    ),
}
