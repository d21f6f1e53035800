"""Solutions of chapter 4, damping and trust."""

import numpy as np


def pi(Omega, Gamma):
    return np.sqrt((np.trace(Omega) / len(Omega)) / (np.trace(Gamma) / len(Gamma)))


def damped(Omega, Gamma, c):
    share = pi(Omega, Gamma)
    return (
        Omega + share * np.sqrt(c) * np.eye(len(Omega)),
        Gamma + np.sqrt(c) / share * np.eye(len(Gamma)),
    )


def clip_scale(nu, C):
    return min(1.0, np.sqrt(C / nu))


def nu(p, r, v, weight_decay):
    per_example = (p * r**2).sum(axis=1) - (p * r).sum(axis=1) ** 2  # r^T F_R r
    return per_example.mean() + weight_decay * (v**2).sum()


def adapt(damping, rho, factor):
    if rho > 3 / 4:
        return damping * factor
    if rho < 1 / 4:
        return damping / factor
    return damping


ANSWERS = {"4.1": pi, "4.2": damped, "4.3": clip_scale, "4.4": nu, "4.5": adapt}
