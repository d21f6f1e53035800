"""Solutions of chapter 3, convolutions."""

import numpy as np


def beta(T1, T2, d, d2):
    count = 1
    for T, one, other in zip((T1, T2), d, d2, strict=True):
        count *= max(0, T - max(one, other, 0) + min(one, other, 0))
    return count


def omega(a, K):
    M, H, W, J = a.shape
    padded = np.pad(a, ((0, 0), (K // 2,) * 2, (K // 2,) * 2, (0, 0)))
    rows = [
        np.concatenate([[1.0], padded[m, h : h + K, w : w + K].ravel()])
        for m, h, w in np.ndindex(M, H, W)
    ]
    return np.transpose(rows) @ rows / M


def gamma(ds):
    rows = ds.reshape(-1, ds.shape[-1])
    return rows.T @ rows / len(rows)  # M * |T| rows


def autocorrelation(ds, d):
    _, H, W = ds.shape
    products = ds[:, : H - d[0], : W - d[1]] * ds[:, d[0] :, d[1] :]
    return products.mean() / (ds**2).mean()


ANSWERS = {"3.1": beta, "3.2": omega, "3.3": gamma, "3.4": autocorrelation}
