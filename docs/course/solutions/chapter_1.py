"""Solutions of chapter 1, the Fisher matrix."""

import numpy as np


def score(z, y):
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    return p


def fisher(J, p):
    total = 0
    for J_m, p_m in zip(J, p, strict=True):
        total = total + J_m.T @ (np.diag(p_m) - np.outer(p_m, p_m)) @ J_m
    return total / len(p)


def sampled_fisher(J, p, labels, u):
    y = (p.cumsum(axis=1) <= u[:, None]).sum(axis=1)  # the labels are not looked at
    dz = p - np.eye(p.shape[1])[y]
    gradients = np.einsum("mcn,mc->mn", J, dz)
    return gradients.T @ gradients / len(p)


def natural_step(F, g, damping, learning_rate):
    return -learning_rate * np.linalg.solve(F + damping * np.eye(len(g)), g)


ANSWERS = {"1.1": score, "1.2": fisher, "1.3": sampled_fisher, "1.4": natural_step}
