"""Chapter 2: the factors of a dense layer, its block and its natural gradient."""

import numpy as np

from kfcnet.course.exercise import Exercise
from kfcnet.curvature import derivative_factor, input_factor, precondition


def _with_ones(A):
    return np.hstack([np.ones((len(A), 1)), A])


def _psi_cases(rng):
    return [{"A": 1 + rng.normal(size=shape)} for shape in ((5, 3), (4, 2))]


def _gamma_cases(rng):
    return [{"ds_of_mean": rng.normal(size=(M, I)) / M} for M, I in ((5, 3), (4, 2))]


def _spd(rng, side):
    root = rng.normal(size=(side, side + 2))
    return root @ root.T / side


def _natural_cases(rng):
    return [
        {"dW": rng.normal(size=(I, P)), "Omega_inv": _spd(rng, P), "Gamma_inv": _spd(rng, I)}
        for I, P in ((2, 3), (3, 3), (4, 2))
    ]


def _block_cases(rng):
    return [{"Omega": _spd(rng, P), "Gamma": _spd(rng, I)} for P, I in ((3, 2), (2, 4))]


def _in_row_order(dW, Omega_inv, Gamma_inv):
    """The paper's Kronecker product times a gradient that is flattened by rows."""
    return (np.kron(Omega_inv, Gamma_inv) @ dW.ravel()).reshape(dW.shape)


EXERCISES = {
    "2.1": Exercise(
        _psi_cases,
        lambda A: input_factor(A),
        {
            "The homogeneous one is missing: the bias has a row and a column, too.": lambda A: (
                A.T @ A / len(A)
            ),
            "The ones are the last column; the bias stands first.": lambda A: (
                np.hstack([A, np.ones((len(A), 1))]).T
                @ np.hstack([A, np.ones((len(A), 1))])
                / len(A)
            ),
            "A missing 1/M: the factor is a mean over the examples.": lambda A: (
                _with_ones(A).T @ _with_ones(A)
            ),
            "The product is transposed: this pairs examples, the factor pairs units.": lambda A: (
                _with_ones(A) @ _with_ones(A).T / len(A)
            ),
            "The divisor is M - 1; a second moment about zero is a mean over all M examples.": (
                lambda A: _with_ones(A).T @ _with_ones(A) / (len(A) - 1)
            ),
            "This is the covariance: K-FAC takes the second moment, the mean stays in.": lambda A: (
                np.cov(_with_ones(A).T, bias=True)
            ),
        },
    ),
    "2.2": Exercise(
        _gamma_cases,
        lambda ds_of_mean: derivative_factor(len(ds_of_mean) * ds_of_mean),
        {
            "The derivatives are those of the mean loss still: a factor 1/M each, so Gamma is M^2 "
            "times too small.": lambda ds_of_mean: derivative_factor(ds_of_mean),
            "M times too small: both derivatives of a product have a 1/M, one is left.": (
                lambda ds_of_mean: len(ds_of_mean) * derivative_factor(ds_of_mean)
            ),
            "A missing 1/M: the factor is a mean over the examples.": lambda ds_of_mean: (
                len(ds_of_mean) * derivative_factor(len(ds_of_mean) * ds_of_mean)
            ),
            "The product is transposed: this pairs examples, the factor pairs units.": (
                lambda ds_of_mean: len(ds_of_mean) * ds_of_mean @ ds_of_mean.T
            ),
        },
    ),
    "2.3": Exercise(
        _natural_cases,
        lambda dW, Omega_inv, Gamma_inv: precondition(dW, Omega_inv, Gamma_inv),
        {
            "The factors are transposed: Gamma acts on the rows of dW (outputs), Omega on its "
            "columns (inputs).": lambda dW, Omega_inv, Gamma_inv: Omega_inv @ dW @ Gamma_inv,
            "dW is transposed, and the factors with it: the result should be as dW is, (I, P).": (
                lambda dW, Omega_inv, Gamma_inv: Omega_inv @ dW.T @ Gamma_inv
            ),
            "dW is transposed: its rows are outputs, its columns inputs.": (
                lambda dW, Omega_inv, Gamma_inv: Gamma_inv @ dW.T @ Omega_inv
            ),
            "The result is flattened: it should be as dW is, (I, P).": (
                lambda dW, Omega_inv, Gamma_inv: (Gamma_inv @ dW @ Omega_inv).ravel()
            ),
            "Entries are multiplied with entries (*); these are products of matrices (@).": (
                lambda dW, Omega_inv, Gamma_inv: Gamma_inv * dW * Omega_inv
            ),
            "Omega's inverse is missing.": lambda dW, Omega_inv, Gamma_inv: Gamma_inv @ dW,
            "Gamma's inverse is missing.": lambda dW, Omega_inv, Gamma_inv: dW @ Omega_inv,
            "The arguments are inverses already.": lambda dW, Omega_inv, Gamma_inv: (
                np.linalg.solve(Gamma_inv, dW) @ np.linalg.inv(Omega_inv)
            ),
            "The factors are transposed: the paper's product goes with columns of dW one below the "
            "other, ravel() puts its rows one behind the other.": _in_row_order,
        },
    ),
    "2.4": Exercise(
        _block_cases,
        lambda Omega, Gamma: np.kron(Gamma, Omega),
        {
            "The factors are transposed: this is the paper's order, for columns of dW one below "
            "the other.": lambda Omega, Gamma: np.kron(Omega, Gamma),
            "This is a matrix for every pair of rows: it has to be one matrix.": (
                lambda Omega, Gamma: np.einsum("ik,pq->ikpq", Gamma, Omega)
            ),
        },
    ),
}
