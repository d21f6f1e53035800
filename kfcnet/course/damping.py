"""Chapter 4: pi, the damped factors, the clip, the Levenberg-Marquardt rule."""

import numpy as np
from scipy.special import softmax

from kfcnet.course.exercise import Exercise
from kfcnet.optimizers.levenberg_marquardt import adapted_damping


def _spd(rng, side, scale):
    root = rng.normal(size=(side, side + 2))
    return scale * root @ root.T


def _factor_cases(rng):
    sizes = (5, 3.0, 2, 0.1), (3, 0.2, 4, 1.0)
    return [{"Omega": _spd(rng, P, s), "Gamma": _spd(rng, I, t)} for P, s, I, t in sizes]


def _damped_cases(rng):
    return [{**case, "c": c} for case, c in zip(_factor_cases(rng), (0.04, 0.5), strict=True)]


def _mean_eigenvalue(matrix):
    return np.trace(matrix) / len(matrix)


def _pi(Omega, Gamma):
    return np.sqrt(_mean_eigenvalue(Omega) / _mean_eigenvalue(Gamma))


def _shifted(Omega, Gamma, for_Omega, for_Gamma):
    return Omega + for_Omega * np.eye(len(Omega)), Gamma + for_Gamma * np.eye(len(Gamma))


def _damped(Omega, Gamma, c):
    pi = _pi(Omega, Gamma)
    return _shifted(Omega, Gamma, pi * np.sqrt(c), np.sqrt(c) / pi)


def _clip_cases(rng):
    return [{"nu": nu, "C": C} for nu, C in ((2.7, 0.3), (0.31, 0.3), (0.03, 0.3), (2.0, 0.05))]


def _nu_cases(rng):
    cases = []
    for M, C, n, decay in ((5, 3, 4, 0.02), (4, 2, 6, 0.5)):
        p = softmax(rng.normal(size=(M, C)), axis=1)
        case = {"p": p, "r": rng.normal(size=(M, C)), "v": rng.normal(size=n)}
        cases.append({**case, "weight_decay": decay})
    return cases


def _nu(p, r, v, weight_decay):
    return ((p * r**2).sum(axis=1) - (p * r).sum(axis=1) ** 2).mean() + weight_decay * v @ v


def _rule_cases(rng):
    cases = [
        {"damping": 2.0, "rho": rho, "factor": 0.9} for rho in (0.9, 0.5, 0.1, -1.0, 0.25, 0.75)
    ]
    return [*cases, *({"damping": 0.1, "rho": rho, "factor": 0.6} for rho in (1.2, 0.2))]


EXERCISES = {
    "4.1": Exercise(
        _factor_cases,
        _pi,
        {
            "The root is missing.": lambda Omega, Gamma: _pi(Omega, Gamma) ** 2,
            "The factors are transposed: this is 1/pi.": lambda Omega, Gamma: _pi(Gamma, Omega),
            "The dimensions are missing: the norm of Omega (x) I has the trace of I in it, too.": (
                lambda Omega, Gamma: np.sqrt(np.trace(Omega) / np.trace(Gamma))
            ),
            "This takes the largest eigenvalues; the paper's norm is the trace.": (
                lambda Omega, Gamma: np.sqrt(
                    np.linalg.eigvalsh(Omega)[-1] / np.linalg.eigvalsh(Gamma)[-1]
                )
            ),
            "This takes Frobenius norms; the paper's norm is the trace.": lambda Omega, Gamma: (
                np.sqrt(np.linalg.norm(Omega) / np.linalg.norm(Gamma))
            ),
        },
    ),
    "4.2": Exercise(
        _damped_cases,
        _damped,
        {
            "A missing root: each factor gets sqrt(c), so that their product has c.": (
                lambda Omega, Gamma, c: _shifted(
                    Omega, Gamma, _pi(Omega, Gamma) * c, c / _pi(Omega, Gamma)
                )
            ),
            "The factors are transposed: pi belongs to Omega, 1/pi to Gamma.": (
                lambda Omega, Gamma, c: _shifted(
                    Omega, Gamma, np.sqrt(c) / _pi(Omega, Gamma), np.sqrt(c) * _pi(Omega, Gamma)
                )
            ),
            "The factors are exchanged: return the damped Omega first.": lambda Omega, Gamma, c: (
                _damped(Omega, Gamma, c)[::-1]
            ),
            "Each factor gets c; then their product gets c^2, and pi has no part in it.": (
                lambda Omega, Gamma, c: _shifted(Omega, Gamma, c, c)
            ),
            "c is halved: shares of a product are multiplied, not added up.": (
                lambda Omega, Gamma, c: _shifted(Omega, Gamma, c / 2, c / 2)
            ),
            "pi has lost its root: it is pi that multiplies, not pi^2.": lambda Omega, Gamma, c: (
                _shifted(
                    Omega,
                    Gamma,
                    _pi(Omega, Gamma) ** 2 * np.sqrt(c),
                    np.sqrt(c) / _pi(Omega, Gamma) ** 2,
                )
            ),
            "pi is without the dimensions: it compares mean eigenvalues, not traces.": (
                lambda Omega, Gamma, c: _shifted(
                    Omega,
                    Gamma,
                    np.sqrt(c * np.trace(Omega) / np.trace(Gamma)),
                    np.sqrt(c * np.trace(Gamma) / np.trace(Omega)),
                )
            ),
            "Only Omega is damped; both factors have to be.": lambda Omega, Gamma, c: (
                _damped(Omega, Gamma, c)[0],
                Gamma,
            ),
            "Only Gamma is damped; both factors have to be.": lambda Omega, Gamma, c: (
                Omega,
                _damped(Omega, Gamma, c)[1],
            ),
            "The damping is added to every entry; it belongs on the diagonal.": (
                lambda Omega, Gamma, c: (
                    Omega + _pi(Omega, Gamma) * np.sqrt(c),
                    Gamma + np.sqrt(c) / _pi(Omega, Gamma),
                )
            ),
            "These are the inverses; asked for are the damped factors.": lambda Omega, Gamma, c: (
                tuple(map(np.linalg.inv, _damped(Omega, Gamma, c)))
            ),
            "Without pi the result changes when a number moves from Omega to Gamma.": (
                lambda Omega, Gamma, c: _shifted(Omega, Gamma, np.sqrt(c), np.sqrt(c))
            ),
            "Both factors get pi: in their product it does not cancel.": lambda Omega, Gamma, c: (
                _shifted(Omega, Gamma, *[_pi(Omega, Gamma) * np.sqrt(c)] * 2)
            ),
        },
    ),
    "4.3": Exercise(
        _clip_cases,
        lambda nu, C: min(1.0, np.sqrt(C / nu)),
        {
            "A missing root: nu is quadratic in the step.": lambda nu, C: min(1.0, C / nu),
            "Short steps are lengthened: the clip only shortens.": lambda nu, C: np.sqrt(C / nu),
            "Short steps are lengthened, and a root is missing.": lambda nu, C: C / nu,
            "The root is of nu alone; it is of the ratio.": lambda nu, C: min(1.0, C / np.sqrt(nu)),
            "The ratio is upside down.": lambda nu, C: min(1.0, np.sqrt(nu / C)),
            "The ratio is upside down, and long steps get longer.": lambda nu, C: max(
                1.0, np.sqrt(nu / C)
            ),
        },
    ),
    "4.4": Exercise(
        _nu_cases,
        _nu,
        {
            "The weight decay is missing: it belongs to the objective, and to its curvature.": (
                lambda p, r, v, weight_decay: _nu(p, r, v, 0.0)
            ),
            "F_R is diag(p) - p p^T: the second term is missing.": (
                lambda p, r, v, weight_decay: (
                    _nu(p, r, v, weight_decay) + ((p * r).sum(axis=1) ** 2).mean()
                )
            ),
            "The mean over the examples is missing.": lambda p, r, v, weight_decay: (
                len(p) * _nu(p, r, v, 0.0) + weight_decay * v @ v
            ),
            "The penalty's share is divided by the examples' number; the objective has it once.": (
                lambda p, r, v, weight_decay: _nu(p, r, v, weight_decay / len(p))
            ),
            "The penalty's half goes with the square's two: its curvature is lambda.": (
                lambda p, r, v, weight_decay: _nu(p, r, v, weight_decay / 2)
            ),
            "The square is of the mean over the examples; each example has an F_R of its own.": (
                lambda p, r, v, weight_decay: (
                    (p * r**2).sum(axis=1).mean()
                    - (p * r).sum(axis=1).mean() ** 2
                    + weight_decay * v @ v
                )
            ),
            "The probabilities are missing: this is the length of r.": (
                lambda p, r, v, weight_decay: (r**2).sum(axis=1).mean() + weight_decay * v @ v
            ),
        },
    ),
    "4.5": Exercise(
        _rule_cases,
        lambda damping, rho, factor: adapted_damping(damping, rho, factor),
        {
            "The rule is turned round: where the model is right, trust it more and damp less.": (
                lambda damping, rho, factor: adapted_damping(damping, rho, 1 / factor)
            ),
            "A negative rho says that the objective rose: that is below 1/4, too.": (
                lambda damping, rho, factor: (
                    damping if rho < 0 else adapted_damping(damping, rho, factor)
                )
            ),
            "At exactly 1/4 and at exactly 3/4 the damping stays.": lambda damping, rho, factor: (
                damping * factor if rho >= 0.75 else (damping / factor if rho <= 0.25 else damping)
            ),
            "The middle is missing: between 1/4 and 3/4 the damping stays.": (
                lambda damping, rho, factor: damping * factor if rho > 0.75 else damping / factor
            ),
            "The damping never grows: below 1/4 it has to.": lambda damping, rho, factor: (
                damping * factor if rho > 0.75 else damping
            ),
        },
    ),
}
