# %% [markdown]
# # Chapter 2: Kronecker factors
#
# **Question.** The Fisher matrix of a layer with $n$ weights has $n^2$ entries. How can it be
# stored and inverted for thousands of weights?
#
# **You need** [chapter 1](1_fisher.md) and the paper's section 2.2. **You will be able to** derive
# the two factors of a dense layer, invert their product, say what the approximation loses, and name
# cases in which it loses nothing.
#
# *Beside other courses:* the [KFAC tutorial](https://github.com/f-dangel/kfac-tutorial) derives
# the factors and tests them where they are exact. We learned that from it: exact cases are the best
# tests. This chapter adds what is lost elsewhere, measured, and what it costs in training.
# [Dive into Deep Learning](https://d2l.ai/chapter_optimization/index.html) stops at diagonal
# preconditioners; here whole blocks are inverted.

# %%
import matplotlib.pyplot as plt
import numpy as np

import kfcnet.data
from kfcnet.config import load_config
from kfcnet.course import check
from kfcnet.curvature import FisherOperator, KroneckerFisher
from kfcnet.losses import SoftmaxCrossEntropy, SquaredError
from kfcnet.network import build_network
from kfcnet.ops import get_ops

rng = np.random.default_rng(0)
ops = get_ops("cpu", "float64")
digits = kfcnet.data.load(load_config("digits_kfc").data)
pixels = digits.train_images[:400].astype(float).reshape(-1, 4, 2, 4, 2, 1).mean(axis=(2, 4))
images = (pixels - pixels.mean(axis=0)) / pixels.std()  # (M, 4, 4, 1)
labels = digits.train_labels[:400]

layers = [
    {"layer": "dense", "name": "first", "units": 6, "std": 0.3},
    {"layer": "relu"},
    {"layer": "dense", "name": "second", "units": 6, "std": 0.5},
    {"layer": "relu"},
    {"layer": "dense", "name": "third", "units": 10, "std": 0.5},
]
network = build_network(layers, (4, 4, 1), ops, seed=1)
cross_entropy = SoftmaxCrossEntropy(ops, seed=0)

# %% [markdown]
# ## The gradient of a dense layer is an outer product
#
# A dense layer computes $\mathbf{s} = \bar{\mathbf{W}} \bar{\mathbf{a}}$, where
# $\bar{\mathbf{a}} = (1, \mathbf{a})$ has a one for the bias. For **one** example
#
# $$\mathcal{D}\bar{\mathbf{W}} = \mathcal{D}\mathbf{s} \; \bar{\mathbf{a}}^\top, \qquad
# \mathrm{vec}(\mathcal{D}\bar{\mathbf{W}}) = \bar{\mathbf{a}} \otimes \mathcal{D}\mathbf{s}$$
#
# **Why?** $s_i = \sum_j \bar{W}_{ij} \bar{a}_j$, so
# $\mathcal{D}\bar{W}_{ij} = \mathcal{D}s_i \, \bar{a}_j$. Column $j$ of
# $\mathcal{D}\bar{\mathbf{W}}$ is $\bar{a}_j \, \mathcal{D}\mathbf{s}$. $\mathrm{vec}$ stacks the
# columns, and $\bar{a}_1 \mathcal{D}\mathbf{s}, \bar{a}_2 \mathcal{D}\mathbf{s}, \dots$ one below
# the other is what $\bar{\mathbf{a}} \otimes \mathcal{D}\mathbf{s}$ means.
#
# The Fisher block of the layer is the second moment of that vector. Kronecker products multiply
# factor by factor,
#
# $$(\mathbf{A} \otimes \mathbf{B})(\mathbf{C} \otimes \mathbf{D}) =
# \mathbf{A} \mathbf{C} \otimes \mathbf{B} \mathbf{D}$$
#
# (write both sides block by block to see it), so
#
# $$\mathbf{F}_\ell = \mathbb{E}\big[ \bar{\mathbf{a}} \bar{\mathbf{a}}^\top \otimes
# \mathcal{D}\mathbf{s} \, \mathcal{D}\mathbf{s}^\top \big]$$
#
# This is exact: the mean of a Kronecker product. K-FAC takes the Kronecker product of the means
# (Eq. 4):
#
# $$\mathbf{F}_\ell \approx
# \mathbf{\Psi} \otimes \mathbf{\Gamma}, \qquad
# \mathbf{\Psi} = \mathbb{E}\big[ \bar{\mathbf{a}} \bar{\mathbf{a}}^\top \big], \qquad
# \mathbf{\Gamma} = \mathbb{E}\big[ \mathcal{D}\mathbf{s} \, \mathcal{D}\mathbf{s}^\top \big]$$
#
# The mean of a product is the product of the means if the two are independent. So the assumption is
# called **IAD**: the activations are independent of the derivatives of the pre-activations.

# %% alt="Exact block, K-FAC's block and their difference of the middle layer; they look alike"
approximate = KroneckerFisher.estimate(network, cross_entropy, images, draws=None)
exact = FisherOperator(network, cross_entropy, images) @ np.eye(len(network.theta))
ends = np.cumsum([0, *(layer.weight.size for layer in network.weighted)])
parts = [slice(a, b) for a, b in zip(ends, ends[1:], strict=False)]
kfac = approximate @ np.eye(len(network.theta))

figure, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained")
block, ours = exact[parts[1], parts[1]], kfac[parts[1], parts[1]]
limit = np.abs(block).max()
for axis, (title, matrix) in zip(
    axes, {"exact": block, "K-FAC": ours, "difference": block - ours}.items(), strict=True
):
    axis.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axis.set(title=title, xticks=[], yticks=[])
for layer, part in zip(network.weighted, parts, strict=True):
    off = np.linalg.norm(exact[part, part] - kfac[part, part]) / np.linalg.norm(exact[part, part])
    print(f"{layer.name:7}: |exact - K-FAC| / |exact| = {off:.2f}")

# %% [markdown]
# The figure has the middle layer: 6 x 7 weights, so 42 rows. Rows are in the order of the project,
# one unit's weights after the other; there the block is $\mathbf{\Gamma} \otimes \mathbf{\Psi}$.
# The paper's $\mathbf{\Psi} \otimes \mathbf{\Gamma}$ is the same matrix, when the columns of
# $\bar{\mathbf{W}}$ stand one below the other.
#
# ## Why the product is easy to invert
#
# Two rules carry everything:
#
# $$(\mathbf{\Psi} \otimes \mathbf{\Gamma})^{-1} = \mathbf{\Psi}^{-1} \otimes \mathbf{\Gamma}^{-1},
# \qquad (\mathbf{\Psi} \otimes \mathbf{\Gamma}) \, \mathrm{vec}(\mathbf{V}) =
# \mathrm{vec}(\mathbf{\Gamma} \mathbf{V} \mathbf{\Psi}^\top)$$
#
# **Why the first?** Multiply both, factor by factor: $\mathbf{I} \otimes \mathbf{I}$ is left. **Why
# the second?** Take $\mathbf{V} = \mathbf{b} \mathbf{a}^\top$ first. Then
# $\mathrm{vec}(\mathbf{V}) = \mathbf{a} \otimes \mathbf{b}$, the left side is
# $\mathbf{\Psi} \mathbf{a} \otimes \mathbf{\Gamma} \mathbf{b}$, and that is $\mathrm{vec}$ of
# $\mathbf{\Gamma} \mathbf{b} (\mathbf{\Psi} \mathbf{a})^\top$, which is
# $\mathbf{\Gamma} \mathbf{V} \mathbf{\Psi}^\top$.
# Every matrix is a sum of such $\mathbf{V}$, and both sides are linear. Together, with symmetric
# factors (Eq. 5, 6):
#
# $$\mathbf{F}_\ell^{-1} \, \mathrm{vec}(\nabla_{\bar{\mathbf{W}}} h) \approx
# \mathrm{vec}\big( \mathbf{\Gamma}^{-1} \, (\nabla_{\bar{\mathbf{W}}} h) \mathbf{\Psi}^{-1} \big)$$
#
# $\mathbf{\Psi}^{-1}$ undoes what the inputs have in common. $\mathbf{\Gamma}^{-1}$ does so for the
# outputs. Nothing of size $n \times n$ appears.

# %%
Psi, Gamma = (factor + 0.1 * np.eye(len(factor)) for factor in approximate.factors[1])
V = rng.normal(size=(len(Gamma), len(Psi)))
small = np.linalg.inv(Gamma) @ V @ np.linalg.inv(Psi)
dense = np.linalg.solve(np.kron(Psi, Gamma), V.ravel("F")).reshape(V.shape, order="F")
print(f"difference from the dense solve: {np.abs(small - dense).max() / np.abs(dense).max():.0e}")
for name, I, P in (("this layer", 6, 7), ("AlexNet's second convolution", 128, 1201)):
    entries, cost = (I * P) ** 2 / (I**2 + P**2), (I * P) ** 3 / (I**3 + P**3)
    print(f"{name}: {entries:.0f} times fewer entries, {cost:.1e} times fewer operations to invert")

# %% [markdown]
# ## What is lost
#
# Two things are lost. **Between layers**: K-FAC keeps the diagonal blocks only. **Within a layer**:
# activations and derivatives are not independent. Where a unit's input is large, its derivative may
# be, too.

# %% alt="Left the full exact matrix with its blocks, right the same with K-FAC's diagonal blocks"
figure, axes = plt.subplots(1, 2, figsize=(7.5, 3.6), layout="constrained")
scale = 1 / np.sqrt(np.diag(exact) + 1e-12)
for axis, (title, matrix) in zip(axes, {"exact": exact, "K-FAC": kfac}.items(), strict=True):
    axis.imshow(matrix * np.outer(scale, scale), cmap="RdBu_r", vmin=-1, vmax=1)
    axis.set(title=title, xticks=[], yticks=[])
    for end in ends[1:-1]:
        axis.axhline(end - 0.5, color="black", linewidth=0.5)
        axis.axvline(end - 0.5, color="black", linewidth=0.5)
off_diagonal = exact.copy()
for part in parts:
    off_diagonal[part, part] = 0
print(f"share of |F|^2 between layers: {(off_diagonal**2).sum() / (exact**2).sum():.2f}")
excess = np.diag(ours) / np.diag(block)
print(f"middle layer, diagonals, K-FAC over exact: {excess.min():.1f} to {excess.max():.0f}")
print(f"|F - K-FAC| / |F| in all: {np.linalg.norm(exact - kfac) / np.linalg.norm(exact):.2f}")

# %% [markdown]
# Both matrices are scaled to the exact matrix's diagonal of one; colours are cut at one. The blocks
# off the diagonal are not small: this is the larger loss. The paper's method ignores them, and so
# does this project. The dark stripes in the middle of K-FAC are weights whose input and unit are
# almost never active together: there the product of the two means is far too large.
#
# ## Where nothing is lost
#
# The mean of a product is the product of means, too, if one of the two is the **same for all
# examples**: a constant goes out of a mean. That makes K-FAC's block exact in two cases:
#
# 1. **One example.** $\bar{\mathbf{a}} \bar{\mathbf{a}}^\top$ is a constant. The mean over $y$ is
#    left.
# 2. **A linear network with squared error.** The model is $y \sim \mathcal{N}(z, \mathbf{I})$, so
#    $\mathcal{D}z = z - y$ is noise with the second moment $\mathbf{I}$, whatever the input is.
#    Without ReLU, $\mathcal{D}\mathbf{s}$ is that noise times fixed weights. So
#    $\mathbb{E}_y[\mathcal{D}\mathbf{s} \, \mathcal{D}\mathbf{s}^\top]$ is the same for all
#    examples.
#
# Such cases are the best tests of an implementation: a lost factor shows at once. Below is the
# error of the middle block in these cases, and after each of them is broken.

# %%
linear = [layer for layer in layers if layer["layer"] == "dense"]
cases = {
    "one example, ReLU, softmax": (layers, SoftmaxCrossEntropy, images[:1]),
    "two examples, ReLU, softmax": (layers, SoftmaxCrossEntropy, images[:2]),
    "400 examples, linear, squared error": (linear, SquaredError, images),
    "400 examples, linear, softmax": (linear, SoftmaxCrossEntropy, images),
    "400 examples, ReLU, squared error": (layers, SquaredError, images),
}
for name, (structure, loss, x) in cases.items():
    net = build_network(structure, (4, 4, 1), ops, seed=1)
    true = FisherOperator(net, loss(ops), x) @ np.eye(len(net.theta))
    own = KroneckerFisher.estimate(net, loss(ops), x, draws=None) @ np.eye(len(net.theta))
    true, own = true[parts[1], parts[1]], own[parts[1], parts[1]]
    print(f"{name:36}: {np.linalg.norm(true - own) / np.linalg.norm(true):.0e}")

# %% [markdown]
# ## Does it matter? Training with both
#
# The network learns the 400 digits. All methods take one step of their direction on all images,
# with the damping 0.01 on the matrix and the step that lowers the loss most among six lengths. So
# only the direction counts.


# %% alt="Training loss over updates: gradient slowest, then K-FAC, the exact blocks, full fastest"
def loss_at(theta):
    with network.using(theta):
        totals = cross_entropy.evaluate(network.forward(images), labels).totals
    return totals[0] / len(images)


def gradient_at(theta):
    with network.using(theta):
        network.backward(cross_entropy.evaluate(network.forward(images), labels).dz)
        network.compute_gradient()
    return network.gradient.copy()


def direction(method, theta, g):
    if method == "gradient":
        return g
    network.theta[:] = theta
    if method == "K-FAC":
        estimate = KroneckerFisher.estimate(network, cross_entropy, images, draws=None)
        return estimate.solve(g, 0.01)
    F = FisherOperator(network, cross_entropy, images) @ np.eye(len(g))
    if method == "exact blocks":
        mask = np.zeros_like(F)
        for part in parts:
            mask[part, part] = 1
        F = F * mask
    return np.linalg.solve(F + 0.01 * np.eye(len(g)), g)


start = network.theta.copy()
figure, axes = plt.subplots(figsize=(5.5, 3.2), layout="constrained")
for method, style in (("gradient", "-."), ("K-FAC", "-"), ("exact blocks", "--"), ("full", ":")):
    theta, losses = start.copy(), [loss_at(start)]
    for _ in range(30):
        step = direction(method, theta, gradient_at(theta))
        lengths = np.array([0.1, 0.2, 0.4, 0.8, 1.6, 3.2])
        tried = [loss_at(theta - length * step) for length in lengths]
        theta = theta - lengths[np.argmin(tried)] * step
        losses.append(min(tried))
    axes.plot(losses, style, label=method)
    print(f"{method:12}: loss {losses[-1]:.4f} after 30 updates")
network.theta[:] = start
axes.set(xlabel="updates", ylabel="training loss (nats)", yscale="log")
axes.legend()

# %% [markdown]
# K-FAC's error is large in norm, and yet its steps are better than the gradient's: it knows which
# inputs go together and which outputs do. The exact blocks are much better again, and the full
# matrix best. Each step down costs accuracy and buys size: only K-FAC can be stored for a network
# in use.
#
# ## Exercises
#
# [Solutions](solutions/chapter_2.py) are in a folder of their own.
#
# **2.1** $\mathbf{\Psi}$ from a mini-batch of activations.


# %%
def psi(A):
    """A (M, J) -> Psi (1 + J, 1 + J), the bias first."""
    ...


check("2.1", psi)

# %% [markdown]
# **2.2** $\mathbf{\Gamma}$. A framework gave you the derivatives of the **mean** loss, as most do.


# %%
def gamma(ds_of_mean):
    """(M, I), row m: d(mean loss) / d(pre-activations of example m) -> Gamma (I, I)."""
    ...


check("2.2", gamma)

# %% [markdown]
# **2.3** The natural gradient of a layer, from the two inverses.


# %%
def natural_gradient(dW, Omega_inv, Gamma_inv):
    """dW (I, P), Omega_inv (P, P), Gamma_inv (I, I) -> (I, P)."""
    ...


check("2.3", natural_gradient)

# %% [markdown]
# **2.4** The block as a matrix that multiplies `dW.ravel()`, whose rows stand one behind the other.


# %%
def block_matrix(Omega, Gamma):
    """Omega (P, P), Gamma (I, I) -> (I*P, I*P), in the order of dW.ravel()."""
    ...


check("2.4", block_matrix)

# %% [markdown]
# ## What to remember
#
# - One example's gradient of a dense layer is an outer product, so its second moment is a mean of
#   Kronecker products. IAD turns it into a product of means.
# - The inverse of a product is the product of inverses: two small matrices in place of one large.
# - Lost: blocks between layers, and what activations and derivatives have in common.
# - In a convolution a weight is used at many locations. [Chapter 3](3_convolutions.md) sums over
#   them.
