# %% [markdown]
# # Chapter 3: convolutions
#
# **Question.** A convolution uses each weight at many locations. Its gradient is a sum of outer
# products. How can its Fisher block still be one Kronecker product?
#
# **You need** [chapter 2](2_kronecker.md) and the paper's section 3. **You will be able to** derive
# Theorem 1 step by step, say what IAD, SH and SUD mean, say where $1 / |\mathcal{T}|$ comes from,
# and name a network in which an assumption fails.
#
# *Beside other courses:* the text of the [KFAC tutorial](https://github.com/f-dangel/kfac-tutorial)
# stops before shared weights; its code treats a convolution as a dense layer on patches. That is
# how KFC is computed. This chapter adds **why** it is allowed: the assumptions, one at a time, and
# what each of them costs.

# %%
import matplotlib.pyplot as plt
import numpy as np

import kfcnet.data
from kfcnet.batches import Batch, BatchSequence
from kfcnet.config import load_config
from kfcnet.course import check
from kfcnet.curvature import derivative_factor, input_factor
from kfcnet.curvature.assumptions import correlations, distances, fisher_blocks
from kfcnet.losses import SoftmaxCrossEntropy
from kfcnet.network import build_network
from kfcnet.ops import get_ops
from kfcnet.optimizers import build_optimizer

digits = kfcnet.data.load(load_config("digits_kfc").data)
images = (digits.train_images.astype(float) - digits.mean) / 4
labels = digits.train_labels


def train(layers, epochs):
    """A network trained with SGD on the digits, and its loss object."""
    ops = get_ops("cpu", "float64")
    network = build_network(layers, (8, 8, 1), ops, seed=0)
    loss = SoftmaxCrossEntropy(ops, seed=0)
    config = load_config("digits_sgd", ["optimizer.learning_rate=0.03"]).optimizer
    optimizer = build_optimizer(config, network, loss)
    sequence = BatchSequence(len(images), config.batch_size, seed=0)
    for step in range(epochs * len(images) // config.batch_size):
        indices = sequence.indices(step)
        optimizer.step(Batch(images[indices], labels[indices]))
    return network, loss


# %% [markdown]
# ## The gradient is a sum over locations
#
# $\mathcal{T}$ is the set of locations, $\Delta$ the set of kernel offsets. Map $i$ of the output
# at location $t$ is $s_{i,t} = \sum_{j, \delta} w_{i,j,\delta} \, a_{j,t+\delta} + b_i$. So, for
# one example (Eq. 11),
#
# $$\mathcal{D}w_{i,j,\delta} = \sum_{t \in \mathcal{T}} a_{j,t+\delta} \, \mathcal{D}s_{i,t}$$
#
# with $a_{j,t+\delta} = 0$ where $t + \delta$ is outside the image: the padding. An entry of the
# Fisher block is the expectation of a product of two such sums (Eq. 12):
#
# $$\mathbb{E}[\mathcal{D}w_{i,j,\delta} \, \mathcal{D}w_{i',j',\delta'}] =
# \sum_{t \in \mathcal{T}} \sum_{t' \in \mathcal{T}} \mathbb{E}\big[ a_{j,t+\delta} \,
# \mathcal{D}s_{i,t} \; a_{j',t'+\delta'} \, \mathcal{D}s_{i',t'} \big]$$
#
# It has $|\mathcal{T}|^2$ terms, a million for 32 x 32 pixels. Three assumptions reduce it.
#
# ## Three assumptions, one at a time
#
# **IAD**, independent activations and derivatives. As in chapter 2, the expectation splits:
#
# $$= \sum_t \sum_{t'} \mathbb{E}[a_{j,t+\delta} \, a_{j',t'+\delta'}] \;
# \mathbb{E}[\mathcal{D}s_{i,t} \, \mathcal{D}s_{i',t'}]$$
#
# **SH**, spatial homogeneity. A moment depends on the offset of the two locations, not on where
# they are. **Inside the image** $\mathbb{E}[a_{j,t} a_{j',t'}] = \Omega(j, j', t' - t)$ (Eq. 14),
# and $\mathbb{E}[\mathcal{D}s_{i,t} \mathcal{D}s_{i',t'}] = \Gamma(i, i', t' - t)$ (Eq. 15). Terms
# with an activation outside are zero. They leave the sum:
#
# $$= \sum_{t :\; t + \delta \in \mathcal{T}} \;\; \sum_{t' :\; t' + \delta' \in \mathcal{T}}
# \Omega(j, j', t' + \delta' - t - \delta) \; \Gamma(i, i', t' - t)$$
#
# **SUD**, spatially uncorrelated derivatives: $\Gamma(i, i', \delta) = 0$ for $\delta \neq 0$. Only
# $t' = t$ is left:
#
# $$= \sum_{t :\; t + \delta \in \mathcal{T},\; t + \delta' \in \mathcal{T}}
# \Omega(j, j', \delta' - \delta) \; \Gamma(i, i', 0)$$
#
# Now no term depends on $t$. The sum only **counts** its terms. That is Theorem 1 (Eq. 16):
#
# $$\mathbb{E}[\mathcal{D}w_{i,j,\delta} \, \mathcal{D}w_{i',j',\delta'}] =
# \beta(\delta, \delta') \; \Omega(j, j', \delta' - \delta) \; \Gamma(i, i', 0)$$
#
# **Why is that a Kronecker product?** The row of the block is a pair: $i$, and $(j, \delta)$. So is
# its column. $\beta \, \Omega$ does not know $i, i'$. $\Gamma$ knows nothing else. A matrix whose
# entries are such products is the Kronecker product of the two (Eq. 18, 19).
#
# **And the bias?** $\mathcal{D}b_i = \sum_t \mathcal{D}s_{i,t}$ is the derivative of a weight whose
# input is one at every $t$. The same three steps give
# $\beta(\delta, 0) \, M(j) \, \Gamma(i, i', 0)$ for a weight and a bias, with the mean activation
# $M(j)$ (Eq. 13), and $|\mathcal{T}| \, \Gamma(i, i', 0)$ for two biases: a first row and column of
# $\mathbf{\Omega}$.
#
# ## β counts overlapping offsets
#
# $\beta(\delta, \delta')$ is the number of locations $t$ for which $t + \delta$ **and**
# $t + \delta'$ are inside the image. Take one dimension with $T$ locations. Three intervals have to
# hold $t$: from 1 to $T$, from $1 - \delta$ to $T - \delta$, and from $1 - \delta'$ to
# $T - \delta'$. Their overlap begins at $1 - \min(\delta, \delta', 0)$ and ends at
# $T - \max(\delta, \delta', 0)$. Rows and columns are counted independently, so with two dimensions
# it is a product (Eq. 17), and zero where a factor is negative, since nothing overlaps then:
#
# $$\beta(\delta, \delta') = \prod_{k = 1, 2}
# \big( T_k - \max(\delta_k, \delta'_k, 0) + \min(\delta_k, \delta'_k, 0) \big)$$

# %% alt="A 6 x 6 image: pixels reached by two offsets, and their overlap, for three offset pairs"
T1, T2 = 6, 6


def inside(d):
    """Which t have t + d inside the image, (T1, T2)."""
    rows, columns = np.arange(T1)[:, None] + d[0], np.arange(T2) + d[1]
    return (rows >= 0) & (rows < T1) & (columns >= 0) & (columns < T2)


pairs = [((0, 0), (0, 0)), ((-1, -2), (1, 0)), ((1, 2), (2, 1))]
figure, axes = plt.subplots(1, 3, figsize=(8.5, 3), layout="constrained")
for axis, (d, d2) in zip(axes, pairs, strict=True):
    count = inside(d).astype(int) + inside(d2)
    axis.pcolormesh(count, cmap="Blues", vmin=0, vmax=3, edgecolors="white", linewidth=1)
    for row, column in np.argwhere(count == 2):
        axis.text(column + 0.5, row + 0.5, "t", ha="center", va="center")
    axis.set(title=f"δ = {d}, δ′ = {d2}: β = {(count == 2).sum()}", aspect="equal")
    axis.invert_yaxis()
    axis.axis("off")

offsets = [(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1)]
counted = np.array([[(inside(d) & inside(e)).sum() for e in offsets] for d in offsets])
print(f"for 3 x 3 offsets beta is between {counted.min()} and {counted.max()} = |T|")

# %% [markdown]
# A letter t marks a location that counts. Dark: both offsets stay inside, light: one, white: none.
# In the middle $\beta$ is $(6 - 1 - 1)(6 - 0 - 2) = 16$: offsets of different signs lose locations
# at both ends. On the right it is $(6 - 2)(6 - 2) = 16$: of offsets of one sign the larger one
# decides.
#
# ## Theorem 2: nobody has to count
#
# Theorem 1 has a $\Omega(j, j', \delta)$ to estimate and a $\beta$ to multiply. Theorem 2 says: put
# the patches of an image into the rows of a matrix $[\![\mathbf{A}]\!]_H$, with a column of ones
# for the bias. Then (Eq. 23)
#
# $$\mathbf{\Omega} = \mathbb{E}\big[ [\![\mathbf{A}]\!]_H^\top [\![\mathbf{A}]\!]_H \big],
# \qquad \mathbf{\Gamma} = \frac{1}{|\mathcal{T}|} \,
# \mathbb{E}\big[ \mathcal{D}\mathbf{S}^\top \mathcal{D}\mathbf{S} \big], \qquad
# \mathbf{F}_\ell \approx \mathbf{\Omega} \otimes \mathbf{\Gamma}$$
#
# **Why?** Row $t$ of the patch matrix has $a_{j,t+\delta}$ in column $(\delta, j)$, zero outside.
# An entry of the product of the matrix with itself is a sum over $t$, and SH makes all its terms
# equal:
#
# $$\mathbb{E}\Big[ \sum_{t \in \mathcal{T}} a_{j,t+\delta} \, a_{j',t+\delta'} \Big] =
# \beta(\delta, \delta') \, \Omega(j, j', \delta' - \delta), \qquad
# \mathbb{E}\Big[ \sum_{t \in \mathcal{T}} \mathcal{D}s_{i,t} \, \mathcal{D}s_{i',t} \Big] =
# |\mathcal{T}| \, \Gamma(i, i', 0)$$
#
# **Where does $1 / |\mathcal{T}|$ come from?** The left sum is what Theorem 1 asks for:
# $\mathbf{\Omega}$ **has the count in it**. The right one has it, too, but Theorem 1 asks for
# $\Gamma(i, i', 0)$ of **one** location. So it is divided by $|\mathcal{T}|$. A sum in both would
# count twice; a mean in both would not count at all.

# %%
ones = np.ones((1, T1, T2, 1))  # SH holds exactly: every pixel is 1
Omega = input_factor(ones, kernel_size=3, padding=1)
print("constant image: Omega without its bias is beta:", np.array_equal(Omega[1:, 1:], counted))
print(f"the bias's own entry is |T|: {Omega[0, 0]:.0f}")
noise = np.random.default_rng(1).normal(size=(20000, T1, T2, 2)) * [1, 3]
print("Gamma of derivatives with deviations 1 and 3:", derivative_factor(noise).round(1).tolist())

# %% [markdown]
# ## Why not put estimates into Theorem 1?
#
# It is tempting: estimate $\Omega(j, j', \delta)$ by a mean over all pairs of pixels, multiply by
# $\beta$. Theorem 2's matrix is a mean of $\mathbf{X}^\top \mathbf{X}$, so it is never indefinite.
# Theorem 1 with estimates has no such form.

# %%
image = np.ones((1, 8, 8, 1))  # bright at the border only: not homogeneous at all
image[:, 1:-1, 1:-1] = 0
autocovariance = {}
for r in range(-2, 3):
    for c in range(-2, 3):
        here = image[:, max(0, -r) : 8 - max(0, r), max(0, -c) : 8 - max(0, c)]
        there = image[:, max(0, r) : 8 + min(0, r), max(0, c) : 8 + min(0, c)]
        autocovariance[r, c] = (here * there).mean()
T1 = T2 = 8
plugged = np.array(
    [
        [(inside(d) & inside(e)).sum() * autocovariance[e[0] - d[0], e[1] - d[1]] for e in offsets]
        for d in offsets
    ]
)
by_patches = input_factor(image, kernel_size=3, padding=1)[1:, 1:]
for name, matrix in (("Theorem 1 with estimates", plugged), ("Theorem 2", by_patches)):
    values = np.linalg.eigvalsh(matrix)
    print(f"{name:24}: eigenvalues from {values[0]:.2f} to {values[-1]:.2f}")

# %% [markdown]
# A negative eigenvalue means: a direction in which the "natural gradient" goes uphill. The paper
# warns that training may then diverge. KFC takes Theorem 2; `optimizer.structure=autocovariance`
# shows what Theorem 1 does.
#
# ## The exact block beside KFC's
#
# A small network, trained for a moment, whose second convolution has few enough weights to write
# the exact block down: 4 maps of 3 x 3 x 4 inputs and a bias, 148 rows.

# %% alt="Exact block, IAD, IAD and SH, and KFC of a small convolution; KFC keeps diagonal squares"
conv = {"layer": "conv", "filters": 4, "kernel": 3, "padding": 1, "std": "he"}


def small(pool):
    return [
        conv | {"name": "conv1"},
        {"layer": "relu"},
        {"layer": pool, "size": 2, "stride": 2},
        conv | {"name": "conv2"},
        {"layer": "relu"},
        {"layer": pool, "size": 2, "stride": 2},
        {"layer": "dense", "units": 10, "std": 0.1},
    ]


network, loss = train(small("max_pool"), epochs=5)
blocks = fisher_blocks(network, loss, images[:200], "conv2")
figure, axes = plt.subplots(1, 4, figsize=(10, 2.9), layout="constrained")
titles = {"exact": "exact", "iad": "IAD", "without sud": "IAD, SH", "kfc": "IAD, SH, SUD: KFC"}
limit = np.abs(blocks["exact"]).max() / 2
for axis, (key, title) in zip(axes, titles.items(), strict=True):
    axis.imshow(blocks[key], cmap="RdBu_r", vmin=-limit, vmax=limit)
    axis.set(title=title, xticks=[], yticks=[])
    squares = (blocks[key] ** 2).reshape(4, 37, 4, 37).sum(axis=(1, 3))
    between = 1 - np.trace(squares) / squares.sum()
    print(f"{title:18}: {between:.0%} of the squared entries' sum lies between two output maps")

# %% [markdown]
# From left to right one assumption more. All have 4 x 4 squares for the output maps, and in each of
# them offsets and input maps. With SUD, the squares between two output maps nearly vanish, and
# those on the diagonal grow darker.
#
# How much is lost? Two measures. The **distance** $|\mathbf{K} - \mathbf{F}| / |\mathbf{F}|$ of a
# structure $\mathbf{K}$ counts every entry. The **worth of a step** asks what training asks: move
# along $(\mathbf{K} + c\mathbf{I})^{-1} g$ by the best length; how much of the reduction that the
# exact block promises do we get? It is 1 for the exact block.

# %%
gradient_layer = [layer.name for layer in network.weighted].index("conv2")


def worth(matrix, exact, g, c=0.01):
    """The reduction along (matrix + c I)^-1 g over the reduction along (exact + c I)^-1 g."""
    damped = exact + c * np.eye(len(g))
    v = np.linalg.solve(matrix + c * np.eye(len(g)), g)
    return (g @ v) ** 2 / (v @ damped @ v) / (g @ np.linalg.solve(damped, g))


structures = {"sua": "SUA", "diagonal": "diagonal"}
for when, epochs in (("before training", 0), ("after 5 epochs", 5)):
    net, its_loss = train(small("max_pool"), epochs)
    net.backward(its_loss.evaluate(net.forward(images[:200]), labels[:200]).dz)
    net.compute_gradient()
    g = net.views(net.gradient)[gradient_layer].ravel()
    found = fisher_blocks(net, its_loss, images[:200], "conv2")
    far = {**distances(found), "exact": 0.0}
    for key, title in (titles | structures).items():
        value = worth(found[key], found["exact"], g)
        print(f"{when}, {title:18}: distance {far[key]:.2f}, worth of a step {value:.2f}")
    plain = worth(np.zeros_like(found["exact"]), found["exact"], g)
    print(f"{when}, gradient alone    : worth of a step {plain:.2f}")


# %% [markdown]
# The distances are large, and SUD has a large part in them: the correlations that it drops are
# small, as the next figure shows, but there are $|\mathcal{T}|^2$ pairs of locations, and they add
# up. The step is worth more than the distance suggests, and clearly more than the gradient's. An
# assumption more does not always make the step worse. SUA drops the correlations of **activations**
# between locations; it loses little here, where the maps have 4 x 4 locations. The diagonal drops
# all correlations and is hardly better than the gradient.
#
# ## An assumption broken: average pooling
#
# Why should derivatives be uncorrelated between locations? Because of **max-pooling**: it sends the
# derivative to one pixel of each window, the others get zero. Average pooling sends the same
# derivative to all pixels of a window. Then neighbours have equal derivatives and SUD fails.

# %% alt="Correlation of derivatives over offsets: a point for max-pooling, a hill for average"
figure, axes = plt.subplots(1, 3, figsize=(8, 2.8), layout="constrained")
for axis, pool in zip(axes, ("max_pool", "avg_pool"), strict=False):
    trained, its_loss = train(small(pool), epochs=5)
    measured = correlations(trained, its_loss, images, radius=2)
    rho = np.nanmean(measured["conv2"].derivatives, axis=0)
    axis.imshow(rho, cmap="RdBu_r", vmin=-1, vmax=1)
    axis.set(title=f"derivatives, {pool.replace('_', '-')}ing")
    neighbours = np.mean([rho[2, 1], rho[2, 3], rho[1, 2], rho[3, 2]])
    blocks = fisher_blocks(trained, its_loss, images[:200], "conv2")
    off, size = distances(blocks), np.linalg.norm(blocks["kfc"]) / np.linalg.norm(blocks["exact"])
    print(
        f"{pool}: correlation of neighbouring derivatives {neighbours:.2f}, "
        f"KFC's distance {off['kfc']:.2f}, without SUD {off['without sud']:.2f}, "
        f"KFC's norm over the exact one's {size:.2f}"
    )
activations = measured["conv1"].activations[0]
axes[2].imshow(activations, cmap="RdBu_r", vmin=-1, vmax=1)
axes[2].set(title="activations of conv1: pixels")
for axis in axes:
    axis.set(xticks=range(5), xticklabels=range(-2, 3), yticks=range(5), yticklabels=range(-2, 3))

# %% [markdown]
# Each picture is the correlation of two values of one map over their offset, a mean over the maps.
# The centre is 1. With max-pooling the derivatives are nearly white: SUD describes them well. With
# average pooling neighbours go together: it does not. Pixels are correlated with their neighbours:
# it is right to keep $\mathbf{\Omega}$ whole.
#
# Do not compare the distances of the two networks. With average pooling SUD drops large positive
# terms, and KFC's block becomes much smaller than the exact one, as its norm says. A matrix that is
# too small is hardly ever further away than 1, the distance of the zero matrix. Compare with and
# without SUD in one network: the difference is what SUD costs there.
#
# ## Exercises
#
# [Solutions](solutions/chapter_3.py) are in a folder of their own.
#
# **3.1** $\beta$ for offsets $\delta$ and $\delta'$, each a pair (rows, columns).


# %%
def beta(T1, T2, d, d2):
    """The number of locations t of T1 x T2 with t + d and t + d2 inside."""
    ...


check("3.1", beta)

# %% [markdown]
# **3.2** $\mathbf{\Omega}$ of a convolution with stride 1 and padding K // 2. The project's order
# of columns is offset-major: column 1 + delta*J + j.


# %%
def omega(a, K):
    """Activations a (M, H, W, J), odd kernel side K -> (1 + K*K*J, 1 + K*K*J)."""
    ...


check("3.2", omega)

# %% [markdown]
# **3.3** $\mathbf{\Gamma}$ of a convolution.


# %%
def gamma(ds):
    """Derivatives of each example's own loss, (M, H, W, I) -> Gamma (I, I)."""
    ...


check("3.3", gamma)

# %% [markdown]
# **3.4** The autocorrelation of a map, as in the last figure: the mean product of two values that
# are `d` apart over the mean square.


# %%
def autocorrelation(ds, d):
    """One map ds (M, H, W), d = (rows, columns), both at least 0 -> a number."""
    ...


check("3.4", autocorrelation)

# %% [markdown]
# ## What to remember
#
# - IAD splits, SH makes moments depend on offsets, SUD leaves one sum, and the sum counts: $\beta$.
# - Theorem 2 has the count in $\mathbf{\Omega}$, a sum over locations. So $\mathbf{\Gamma}$ is a
#   mean.
# - With max-pooling derivatives are nearly uncorrelated between locations, as SUD says; with
#   average pooling they are not. Neighbouring pixels are correlated.
# - The factors can be nearly singular. [Chapter 4](4_damping.md) makes their inverses safe.
