# %% [markdown]
# # One update of KFC-pre, line by line
#
# From a configuration to one update of a small network on handwritten digits. Everything is written
# out with NumPy, each equation of [Grosse and Martens (2016)](https://arxiv.org/abs/1602.01407)
# beside the line that computes it, then compared with what the library does. This page is a
# [script](walkthrough.py): it also runs in Jupyter (with jupytext), or with plain Python.

# %%
import matplotlib.pyplot as plt
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

import kfcnet.data
from kfcnet import philox
from kfcnet.batches import Batch, BatchSequence
from kfcnet.config import parse_config
from kfcnet.curvature import damped_inverses, derivative_factor, input_factor, precondition
from kfcnet.losses import SoftmaxCrossEntropy
from kfcnet.network import build_network
from kfcnet.ops import get_ops
from kfcnet.optimizers import build_optimizer

config = parse_config("""
data: {name: digits, input_scale: 4}
network:
- {layer: conv, name: conv1, filters: 8, kernel: 3, padding: 1}
- {layer: relu}
- {layer: conv, name: conv2, filters: 8, kernel: 3, padding: 1}
- {layer: relu}
- {layer: max_pool, size: 2, stride: 2}
- {layer: dense, name: fc10, units: 10}
optimizer: {name: kfc_pre, learning_rate: 0.1, weight_decay: 0.001, damping: 0.01, clip: 0.3,
            clip_fraction: 1, statistics_fraction: 1, statistics_period: 1, inverse_period: 1}
epochs: 1
dtype: float64
""")
ops = get_ops("cpu", config.dtype)
network = build_network(config.network, (8, 8, 1), ops, config.seed)
loss = SoftmaxCrossEntropy(ops, config.seed)
optimizer = build_optimizer(config.optimizer, network, loss)
theta = network.theta.copy()
print(network.summary())


def same(ours, library):
    assert np.isfinite(library).all()
    np.testing.assert_allclose(ours, library, rtol=1e-7, atol=1e-7 * np.abs(library).max())


# %% [markdown]
# ## Two mini-batches
#
# Images are (M, H, W, maps); the network takes (pixel - training mean) / `input_scale`. The first
# mini-batch starts the curvature, the second makes the update.

# %%
digits = kfcnet.data.load(config.data)
M = config.optimizer.batch_size
sequence = BatchSequence(len(digits.train_labels), M, config.seed)
first, second = (
    Batch(
        (digits.train_images[indices] - digits.mean.astype(float)) / config.data.input_scale,
        digits.train_labels[indices],
    )
    for indices in (sequence.indices(0), sequence.indices(1))
)

# %% [markdown]
# ## Forward
#
# A convolution is a matrix product with the patches of its input. Row $t$ of
# $[\![\mathbf{A}]\!]_H$ is a 1 and the patch around location $t$, so that with the bias as first
# column of $\bar{\mathbf{W}}$
#
# $$\mathbf{S}_\ell = [\![\mathbf{A}_{\ell-1}]\!]_H \, \bar{\mathbf{W}}_\ell^\top
# \qquad \text{(Eq. 10)}$$


# %%
def patches(a):
    """[[A]]_H: (M, H, W, J) -> (M*T, 1 + 9*J), for 3 x 3 windows on zero padding."""
    windows = sliding_window_view(np.pad(a, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), axis=(1, 2))
    rows = windows.transpose(0, 1, 2, 4, 5, 3).reshape(a[..., 0].size, -1)
    return np.hstack([np.ones((len(rows), 1)), rows])


def softmax(z):
    p = np.exp(z - z.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def forward(W, x):
    """What each layer with weights takes in, the masks of the others, and p(y | x)."""
    s1 = (patches(x) @ W[0].T).reshape(*x.shape[:3], -1)  # Eq. 10
    s2 = (patches(s1 * (s1 > 0)) @ W[1].T).reshape(s1.shape)
    a2 = s2 * (s2 > 0)  # Eq. 2
    windows = a2.reshape(len(x), 4, 2, 4, 2, 8)
    pooled = windows.max(axis=(2, 4))
    is_max = (windows == pooled[:, :, None, :, None]).reshape(a2.shape) & (s2 > 0)
    z = pooled.reshape(len(x), -1) @ W[2][:, 1:].T + W[2][:, 0]  # Eq. 1
    return (x, s1 * (s1 > 0), pooled), (s1 > 0, is_max), softmax(z)


W = network.views(theta)
inputs, (mask, is_max), p = forward(W, second.inputs)
same(p, softmax(network.forward(second.inputs)))

# %% [markdown]
# ## Backward, at labels and at samples
#
# $\mathcal{D}$ is the derivative of an example's own loss $-\log p(y \mid x)$. The gradient takes
# $y$ from the data. The Fisher matrix takes $y$ from the model (Eq. 3): one backward pass at
# sampled labels feeds the curvature and never sees the true ones.


# %%
def unpool(da):
    """(M, 4, 4, J) -> (M, 8, 8, J): to the largest of each 2 x 2 window."""
    return da.repeat(2, axis=1).repeat(2, axis=2)


def backward(W, p, y, mask, is_max):
    """DS of the three layers, per example."""
    ds3 = p - np.eye(10)[y]
    ds2 = unpool((ds3 @ W[2][:, 1:]).reshape(-1, 4, 4, 8)) * is_max
    rows = (ds2.reshape(-1, 8) @ W[1][:, 1:]).reshape(-1, 8, 8, 3, 3, 8)
    da1 = np.zeros((len(p), 10, 10, 8))  # with its padding
    for r, c in np.ndindex(3, 3):
        da1[:, r : r + 8, c : c + 8] += rows[:, :, :, r, c]
    return da1[:, 1:-1, 1:-1] * mask, ds2, ds3


def sample(p, step):
    """Labels from the model, by the counter-based uniforms that every device shares."""
    u = philox.uniforms(config.seed, philox.TARGETS, step, len(p))
    return (p.cumsum(axis=1) <= u[:, None]).sum(axis=1)


def rows_of(a):
    """[[A]]_H of a convolution's input (M, 8, 8, J), and a dense layer's (1, A) of any other."""
    if a.shape[1:3] == (8, 8):
        return patches(a)
    return np.hstack([np.ones((len(a), 1)), a.reshape(len(a), -1)])


derivatives = backward(W, p, second.targets, mask, is_max)
decay = optimizer.decay_vector  # weight decay, zero for the biases
gradient = [
    ds.reshape(-1, len(w)).T @ rows_of(a) / M + d * w  # Eq. 11, mean
    for ds, a, w, d in zip(derivatives, inputs, W, network.views(decay), strict=True)
]

# %% [markdown]
# ## The two factors of each layer
#
# $$\mathbf{F}_\ell \approx \mathbf{\Omega}_{\ell-1} \otimes \mathbf{\Gamma}_\ell, \qquad
# \mathbf{\Omega} = \mathbb{E}\big[ [\![\mathbf{A}]\!]_H^\top [\![\mathbf{A}]\!]_H \big], \qquad
# \mathbf{\Gamma} = \tfrac{1}{|\mathcal{T}|}
# \mathbb{E}\big[ \mathcal{D}\mathbf{S}^\top \mathcal{D}\mathbf{S} \big]
# \qquad \text{(Eq. 18, 23)}$$
#
# Activations are summed over an example's locations, derivatives averaged. Both are running
# averages over mini-batches, with a timescale in examples. For the first mini-batch the random
# numbers are those of a step far beyond the end of any run, so that none is used twice.


# %% alt="Omega of conv1, Omega of conv2, Gamma of conv1 and Gamma of conv2 as coloured matrices"
def factors(W, x, step):
    """(Omega, Gamma) of the three layers from a mini-batch, at sampled labels."""
    inputs, masks, p = forward(W, x)
    pairs = []
    for a, ds in zip(inputs, backward(W, p, sample(p, step), *masks), strict=True):
        A, DS = rows_of(a), ds.reshape(-1, ds.shape[-1])
        pairs.append((A.T @ A / len(x), DS.T @ DS / len(DS)))  # Eq. 23: len = M|T|
    return pairs


kept = np.exp(-M / config.optimizer.statistics_timescale)
initial, fresh = factors(W, first.inputs, step=2**63 - 1), factors(W, second.inputs, step=0)
running = [
    tuple(kept * old + (1 - kept) * new for old, new in zip(*pairs, strict=True))
    for pairs in zip(initial, fresh, strict=True)
]
same(initial[0][0], input_factor(first.inputs, kernel_size=3, padding=1))
same(
    derivatives[0].reshape(-1, 8).T @ derivatives[0].reshape(-1, 8) / (64 * M),
    derivative_factor(derivatives[0]),
)


def show(axes, matrix, title, every=None):
    """A matrix whose rows and columns 0, 1 to every, ... are kept apart by lines."""
    axes.imshow(matrix, cmap="RdBu_r", vmin=-np.abs(matrix).max(), vmax=np.abs(matrix).max())
    axes.set(title=title, xticks=[], yticks=[])
    for count, line in zip(matrix.shape, (axes.axhline, axes.axvline), strict=True):
        for edge in np.arange(0.5, count, every) if every and count > every else ():
            line(edge, color="black", linewidth=0.3)


figure, axes = plt.subplots(1, 4, figsize=(10, 2.8), layout="constrained")
show(axes[0], running[0][0][1:, 1:], "$\\Omega_0$ of conv1: 9 offsets")
show(axes[1], running[1][0], "$\\Omega_1$ of conv2: a bias, 9 offsets of 8 maps", 8)
show(axes[2], running[0][1], "$\\Gamma_1$ of conv1: 8 maps")
show(axes[3], running[1][1], "$\\Gamma_2$ of conv2: 8 maps")

# %% [markdown]
# Red is positive, blue negative. Pixels go together with their neighbours in the same row (next to
# the diagonal of $\Omega_0$) and, more, in the same column (three off it). Behind a ReLU no
# product is negative, and some maps are large together whatever the offsets ($\Omega_1$: the same
# pattern in every block). Derivatives of different maps have little to do with each other.
#
# ## Damping, and the natural gradient
#
# $$\big(\mathbf{\Omega} + \pi \sqrt{\lambda + \gamma}\, \mathbf{I}\big) \otimes
# \big(\mathbf{\Gamma} + \tfrac{1}{\pi} \sqrt{\lambda + \gamma}\, \mathbf{I}\big), \qquad
# \pi = \sqrt{\frac{\mathrm{tr}\,\mathbf{\Omega} / \dim \mathbf{\Omega}}
# {\mathrm{tr}\,\mathbf{\Gamma} / \dim \mathbf{\Gamma}}}
# \qquad \text{(Eq. 8, 21)}$$

# %% alt="The gradient of conv2 above its natural gradient, as coloured matrices of 8 rows"
c = config.optimizer.weight_decay + config.optimizer.damping  # lambda + gamma
natural = []
for (Omega, Gamma), dW in zip(running, gradient, strict=True):
    pi = np.sqrt((np.trace(Omega) / len(Omega)) / (np.trace(Gamma) / len(Gamma)))  # Eq. 8
    Omega_damped = Omega + pi * np.sqrt(c) * np.eye(len(Omega))  # Eq. 21
    Gamma_damped = Gamma + np.sqrt(c) / pi * np.eye(len(Gamma))
    natural.append(np.linalg.inv(Gamma_damped) @ dW @ np.linalg.inv(Omega_damped))  # Eq. 22
    same(natural[-1], precondition(dW, *damped_inverses(Omega, Gamma, c)))
g, n = (np.concatenate([part.ravel() for part in parts]) for parts in (gradient, natural))

figure, axes = plt.subplots(2, 1, figsize=(9, 2.8), layout="constrained")
show(axes[0], gradient[1], "gradient of conv2: 8 filters, a bias and 9 offsets of 8 maps", 8)
show(axes[1], natural[1], "natural gradient of conv2", 8)
# %% [markdown]
# A row of the gradient, a filter, has mostly one sign: activations behind a ReLU are positive and
# large together, so all of the filter's weights are asked to move alike. The natural gradient takes
# $\mathbf{\Omega}$ out: much of what the inputs have in common goes to the bias, the first column,
# and what is left tells them apart.
#
# ## The clip
#
# The step $\mathbf{v} = -\alpha \hat\nabla h$ is shortened where
# $\nu = \mathbf{v}^\top \mathbf{F} \mathbf{v} + \lambda |\mathbf{v}|^2$ is above the cap.
# $\mathbf{F}$ is the exact Fisher matrix here: with $\mathbf{r}$ the derivative of the logits along
# $\mathbf{v}$ (a forward-mode pass), $\mathbf{v}^\top \mathbf{F} \mathbf{v}$ is the mean of
# $\mathbf{r}^\top (\mathrm{diag}(\mathbf{p}) - \mathbf{p}\mathbf{p}^\top)\, \mathbf{r}$. That is
# about twice the KL divergence between the predictions before and after the step;
# $\lambda |\mathbf{v}|^2$ is the share of the weight decay.


# %%
def tangent(W, V, inputs, mask, is_max):
    """r (M, 10): the derivative of the logits along V."""
    r1 = (patches(inputs[0]) @ V[0].T).reshape(mask.shape) * mask
    r2 = (patches(r1)[:, 1:] @ W[1][:, 1:].T + patches(inputs[1]) @ V[1].T).reshape(is_max.shape)
    r2 = (r2 * is_max).reshape(-1, 4, 2, 4, 2, 8).sum(axis=(2, 4)).reshape(len(r2), -1)
    return r2 @ W[2][:, 1:].T + rows_of(inputs[2]) @ V[2].T


def clip_norm(v):
    r = tangent(W, network.views(v), inputs, mask, is_max)
    variance = (p * r**2).sum(axis=1) - (p * r).sum(axis=1) ** 2
    return variance.mean() + v @ (decay * v)


alpha, cap = config.optimizer.learning_rate, config.optimizer.clip
v = -alpha * n
nu = clip_norm(v)
clip_scale = min(1, np.sqrt(cap / nu))
print(f"nu = {nu:.2f}, so the step is multiplied by {clip_scale:.2f}")

# %% [markdown]
# ## The update
#
# The clipped step goes into the momentum, the momentum moves the parameters, and the iterates are
# averaged over `averaging_timescale` examples. That is all; `optimizer.step` does the same.

# %%
velocity = config.optimizer.momentum * 0.0 + clip_scale * v
updated = theta + velocity
averaging = np.exp(-M / config.optimizer.averaging_timescale)
average = averaging * theta + (1 - averaging) * updated

optimizer.prepare([first])
step = optimizer.step(second)
same(g, network.gradient)
same(n, optimizer.direction)
same(clip_scale, step.clip_scale[0])
same(updated, network.theta)
same(average, optimizer.average)

# %% [markdown]
# ## What it is worth
#
# The mini-batch's loss along both directions, for steps of the same $\nu$: for the same change of
# the predictions, the natural gradient lowers the loss further.


# %% alt="Loss after a step, over its nu: lower along the natural gradient than the gradient"
def loss_after(direction, nu):
    moved = theta - direction * np.sqrt(nu / clip_norm(direction))
    q = forward(network.views(moved), second.inputs)[2]
    return -np.log(q[np.arange(M), second.targets]).mean()


lengths = np.linspace(0, 2, 21)
figure, axes = plt.subplots(figsize=(4.5, 2.8), layout="constrained")
for direction, name, marker in ((g, "gradient", "s"), (n, "natural gradient", "o")):
    losses = [loss_after(direction, nu) for nu in lengths]
    axes.plot(lengths, losses, marker=marker, markevery=4, label=name)
    print(f"loss {losses[0]:.2f} falls to {min(losses):.2f} along the {name}")
axes.axvline(cap, color="black", linestyle=":", label="clip")
axes.set(xlabel="$\\nu$ of the step", ylabel="loss on the mini-batch (nats)")
axes.legend()
