# %% [markdown]
# # Chapter 1: the Fisher matrix
#
# **Question.** The gradient says which way is downhill. Why is it a poor direction, and what has
# probability to do with a better one?
#
# **You need** the paper's section 2.1, the chain rule, and what a covariance is. **You will be
# able to** write the Fisher matrix of a small network down, say what the natural gradient
# minimises, and say why its targets are sampled from the model.
#
# *Beside other courses:* chapters on optimization such as those of [Dive into Deep
# Learning](https://d2l.ai/chapter_optimization/index.html) go from the Hessian to diagonal methods.
# This chapter goes from the likelihood to the Fisher matrix. We learned from them to show every
# method on a problem with two parameters first. The [KFAC
# tutorial](https://github.com/f-dangel/kfac-tutorial) defines all curvature matrices and warns of
# the empirical one. Here you see why the Fisher matrix is the measure of a step, and what the wrong
# matrix does to training.

# %%
import matplotlib.pyplot as plt
import numpy as np

import kfcnet.data
from kfcnet.config import load_config
from kfcnet.course import check
from kfcnet.curvature import FisherOperator
from kfcnet.losses import SoftmaxCrossEntropy
from kfcnet.network import build_network
from kfcnet.ops import get_ops

rng = np.random.default_rng(0)

# %% [markdown]
# ## A loss is a likelihood
#
# A classifier gives probabilities $p(y \mid x; \theta)$. Its loss on one example is
# $-\log p(y \mid x; \theta)$. The paper writes $\mathcal{D}$ for derivatives of that loss. Up to
# its sign, this one is what statisticians call the **score**:
#
# $$\mathcal{D}\theta = \frac{\partial}{\partial \theta} \big( -\log p(y \mid x; \theta) \big)$$
#
# The smallest case has two inputs, two classes and no bias: $p(1 \mid x) = \sigma(\theta^\top x)$.
# The second input is five times larger than the first.

# %%
x = rng.normal(size=(200, 2)) * [1, 5]
labels = (rng.random(200) < 1 / (1 + np.exp(-x @ [1.5, 0.4]))).astype(int)


def probability(theta):
    return 1 / (1 + np.exp(-x @ theta))  # of class 1, (M,)


def loss(theta):
    s = x @ theta
    return np.mean(np.logaddexp(0, s) - labels * s)


def gradient(theta):
    return x.T @ (probability(theta) - labels) / len(x)


# %% [markdown]
# ## How far apart are two models?
#
# Two parameter vectors can be far apart and predict the same. What matters is the distance of the
# **predictions**, the Kullback-Leibler divergence, a mean over the inputs. For a small step
# $\delta$ its second-order expansion is
#
# $$\mathrm{KL}\big( p_\theta \,\|\, p_{\theta + \delta} \big)
# \approx \tfrac{1}{2} \delta^\top \mathbf{F} \delta, \qquad
# \mathbf{F} = \mathbb{E}_{x \sim \text{data},\; y \sim p_\theta}
# \big[ \mathcal{D}\theta \, \mathcal{D}\theta^\top \big] \qquad \text{(Eq. 3)}$$
#
# **Why?** The divergence is the mean rise of the loss when $y$ comes from the old model,
# $\mathbb{E}_y[\log p(y; \theta) - \log p(y; \theta + \delta)]$. Expand it in $\delta$ up to the
# second order. Both terms need one fact: $\sum_y p(y; \theta) = 1$ for **every** $\theta$, so its
# first and second derivatives are zero.
#
# $$
# \begin{aligned}
# \text{first order:} \quad \mathbb{E}_y[\mathcal{D}\theta]
# &= -\sum_y p \, \frac{\nabla p}{p} = -\nabla \sum_y p = 0 \\
# \text{second order:} \quad \mathbb{E}_y[\nabla^2 (-\log p)]
# &= \sum_y p \, \Big( \frac{\nabla p \, \nabla p^\top}{p^2} - \frac{\nabla^2 p}{p} \Big)
# = \mathbb{E}_y\big[ \mathcal{D}\theta \, \mathcal{D}\theta^\top \big] - \nabla^2 \sum_y p
# = \mathbf{F}
# \end{aligned}
# $$
#
# So $\mathbf{F}$ is the Hessian that the loss would have if the labels came from the model. It
# needs first derivatives only, and as a mean of outer products it has no negative eigenvalue. The
# Hessian at the true labels may have one.
#
# For our case the sum over $y$ has two terms. It gives
# $\mathbf{F} = \mathbb{E}[\, p (1 - p)\, x x^\top ]$.


# %%
def fisher(theta):
    p = probability(theta)
    return (x.T * p * (1 - p)) @ x / len(x)


def divergence(theta, other):
    p, q = probability(theta), probability(other)
    return np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))


theta, direction = np.array([0.2, -0.3]), np.array([1.0, 0.5])
for size in (0.01, 0.1, 1.0):
    step = size * direction
    exact, quadratic = divergence(theta, theta + step), step @ fisher(theta) @ step / 2
    print(f"step of size {size:4}: KL {exact:.2e}, 1/2 d'Fd {quadratic:.2e}")

# %% [markdown]
# The two agree for small steps and part for large ones. Remember this in chapter 4.
#
# ## Steepest descent needs a ruler
#
# "Steepest" means: the most descent for a step of a given length. The length decides the answer.
#
# $$\arg\min_{\delta:\; |\delta| \le \epsilon} g^\top \delta \;\propto\; -g, \qquad
# \arg\min_{\delta:\; \delta^\top \mathbf{F} \delta \le \epsilon^2} g^\top \delta
# \;\propto\; -\mathbf{F}^{-1} g$$
#
# The second one is the **natural gradient** (section 2.1). It measures a step by what it does to
# the predictions. **Why $\mathbf{F}^{-1}$?** At the best $\delta$ on the border of the ellipse the
# gradients of $g^\top \delta$ and of $\tfrac{1}{2} \delta^\top \mathbf{F} \delta$ are parallel:
# $g + \kappa \, \mathbf{F} \delta = 0$ with a multiplier $\kappa > 0$, so
# $\delta = -\tfrac{1}{\kappa} \mathbf{F}^{-1} g$. The radius decides $\kappa$ only. With
# $\kappa = 1$ it is the minimum of the quadratic model
# $g^\top \delta + \tfrac{1}{2} \delta^\top \mathbf{F} \delta$: that is why the method counts as a
# second-order method.

# %% alt="Loss contours: a circle and an ellipse with their steepest steps; the path of 15 steps"
figure, axes = plt.subplots(1, 2, figsize=(8, 3.3), layout="constrained")
grid = np.stack(np.meshgrid(np.linspace(-0.8, 2.6, 80), np.linspace(-0.8, 1.2, 80)), axis=-1)
values = np.array([[loss(point) for point in row] for row in grid])
g, F = gradient(theta), fisher(theta)
natural = np.linalg.solve(F, g)
for axis in axes:
    axis.contour(grid[..., 0], grid[..., 1], values, 25, colors="0.75", linewidths=0.6)
    axis.set(xlabel="$\\theta_1$", ylabel="$\\theta_2$", aspect="equal")
angles = np.linspace(0, 2 * np.pi, 100)
circle = np.stack([np.cos(angles), np.sin(angles)])
arrow = {"arrowstyle": "->", "shrinkA": 0, "shrinkB": 0}
ellipse = np.linalg.solve(np.linalg.cholesky(F).T, circle)
for shape, step, colour, name in (
    (0.3 * circle, -0.3 * g / np.linalg.norm(g), "#D55E00", "steepest in the plane"),
    (0.4 * ellipse, -0.4 * natural / np.sqrt(natural @ F @ natural), "#0072B2", "steepest in KL"),
):
    axes[0].plot(*(theta[:, None] + shape), color=colour, linewidth=1)
    axes[0].annotate("", theta + step, theta, arrowprops=arrow | {"color": colour})
    axes[0].plot([], [], color=colour, label=name)
axes[0].legend(loc="upper right")
for name, rate, colour, marker in (
    ("gradient", 0.2, "#D55E00", "s"),
    ("natural", 0.5, "#0072B2", "o"),
):
    path = [theta]
    for _ in range(15):
        g = gradient(path[-1])
        step = g if name == "gradient" else np.linalg.solve(fisher(path[-1]), g)
        path.append(path[-1] - rate * step)
    axes[1].plot(*np.transpose(path), marker + "-", color=colour, markersize=3, label=name)
    print(f"{name}: loss {loss(path[-1]):.3f} after {len(path) - 1} steps")
axes[1].legend(loc="upper right")
axes[0].set_title("one step, two rulers")
axes[1].set_title("15 steps")
# %% [markdown]
# The loss has a long valley, since one input is larger. The ellipse is long along the valley: there
# a step changes the predictions little, so it may be long. The gradient crosses the valley and then
# creeps. The natural gradient leans along the ellipse and is at the minimum after 15 steps.
#
# One more property: the natural gradient does not see the **scale of the inputs**. Measure the
# second input in another unit: $x \to \mathbf{U} x$ with $\mathbf{U} = \mathrm{diag}(1, u)$. The
# model is the same with $\theta \to \mathbf{U}^{-1} \theta$. The chain rule gives
# $g \to \mathbf{U} g$ and $\mathbf{F} \to \mathbf{U} \mathbf{F} \mathbf{U}$, so
# $\mathbf{F}^{-1} g \to \mathbf{U}^{-1} \mathbf{F}^{-1} g$: the step changes as $\theta$ does, and
# the predictions after it are the same. For the gradient alone, $\mathbf{U} g$, they are not.
# Theorem 3 of the paper says the same of KFC's step, layer by layer. Both hold without damping:
# $\mathbf{F} + c \, \mathbf{I}$ does not scale as $\mathbf{F}$ does.

# %%
for unit in (1, 10):
    g, F = gradient(theta) * [1, unit], fisher(theta) * np.outer([1, unit], [1, unit])
    moved = {"gradient": theta - 0.1 * g * [1, unit]}
    moved["natural gradient"] = theta - 0.5 * np.linalg.solve(F, g) * [1, unit]
    for name, new in moved.items():
        print(f"unit {unit:2}, {name:16}: loss after the step {loss(new):.4f}")

# %% [markdown]
# ## A network whose Fisher matrix can be written down
#
# For a network, $\mathcal{D}\theta = \mathbf{J}^\top \mathcal{D}z$: with the logits $z$ and their
# Jacobian $\mathbf{J} = \partial z / \partial \theta$, (classes, parameters). The softmax has
# $\mathcal{D}z = \mathbf{p} - \mathbf{e}_y$, where $\mathbf{e}_y$ has a one at the class $y$. Its
# mean under the model is $\mathbb{E}_y[\mathbf{e}_y] = \mathbf{p}$, so the expectation over $y$ has
# a closed form:
#
# $$\mathbf{F} = \mathbb{E}_x \big[ \mathbf{J}^\top \mathbf{F}_R \, \mathbf{J} \big], \qquad
# \mathbf{F}_R = \mathbb{E}_y\big[ (\mathbf{p} - \mathbf{e}_y)(\mathbf{p} - \mathbf{e}_y)^\top \big]
# = \mathbb{E}_y\big[ \mathbf{e}_y \mathbf{e}_y^\top \big] - \mathbf{p} \mathbf{p}^\top
# = \mathrm{diag}(\mathbf{p}) - \mathbf{p} \mathbf{p}^\top$$
#
# The network is 4 inputs, 4 hidden units, 3 classes. It sees 300 digits (0, 1 and 2), averaged to
# 2 x 2 pixels. `FisherOperator` multiplies by $\mathbf{F}$ without forming it; for this network we
# may form it.

# %%
digits = kfcnet.data.load(load_config("digits_kfc").data)
chosen = np.flatnonzero(digits.train_labels < 3)[:300]
pixels = digits.train_images[chosen].astype(float).reshape(-1, 2, 4, 2, 4, 1).mean(axis=(2, 4))
images = (pixels - pixels.mean(axis=0)) / pixels.std()
targets = digits.train_labels[chosen]

ops = get_ops("cpu", "float64")
layers = [
    {"layer": "dense", "name": "hidden", "units": 4, "std": 0.7},
    {"layer": "relu"},
    {"layer": "dense", "name": "output", "units": 3, "std": 0.7},
]
network = build_network(layers, (2, 2, 1), ops, seed=3)
cross_entropy = SoftmaxCrossEntropy(ops, seed=0)
exact = FisherOperator(network, cross_entropy, images) @ np.eye(len(network.theta))


def per_example(network, dz):
    """The gradient of each example's loss, (M, n), for derivatives dz (M, C) of its logits."""
    network.backward(ops.asarray(dz), per_example=True)
    parts = []
    for layer in network.weighted:
        a = layer.inputs.reshape(len(dz), -1)
        a = np.hstack([np.ones((len(a), 1)), a])  # the bias's input
        ds = layer.derivatives.reshape(len(dz), -1)
        parts.append(np.einsum("mi,mp->mip", ds, a).reshape(len(dz), -1))
    return np.hstack(parts)


p = cross_entropy.predictive(network.forward(images))
J = np.stack([per_example(network, np.tile(unit, (len(p), 1))) for unit in np.eye(3)], axis=1)
F_R = p[:, :, None] * np.eye(3) - p[:, :, None] * p[:, None, :]
written_out = np.einsum("mcn,mcd,mdk->nk", J, F_R, J, optimize=True) / len(p)
assert np.allclose(written_out, exact, atol=1e-12)
values = np.linalg.eigvalsh(exact)
print(f"{len(network.theta)} parameters; J is {J.shape}")
print(f"eigenvalues of F: from {max(values[0], 0):.0e} to {values[-1]:.2f}")
print(f"{(values > 1e-10 * values[-1]).sum()} of {len(values)} are not zero")

# %% [markdown]
# Many eigenvalues are zero or small: directions that change no prediction. In these directions the
# natural gradient would be very long. That is why it is always **damped**: solve with
# $\mathbf{F} + \gamma \mathbf{I}$ (chapter 4).
#
# ## Sampled against empirical
#
# Three ways to get $\mathbf{F}$ from backward passes:
#
# | name | $y$ | |
# | --- | --- | --- |
# | exact | all classes, weighted by $p$ | one backward pass for each class |
# | **sampled** | drawn from $p(y \mid x; \theta)$ | one backward pass; right on average |
# | empirical | the label from the data | no extra pass, and **another matrix** |


# %% alt="Four matrices: exact, sampled and mean of draws look alike, the empirical one does not"
def outer(gradients):
    return gradients.T @ gradients / len(gradients)


def draw(p, rng):
    return (p.cumsum(axis=1) <= rng.random(len(p))[:, None]).sum(axis=1)


one_hot = np.eye(3)
empirical = outer(per_example(network, p - one_hot[targets]))
draws = [outer(per_example(network, p - one_hot[draw(p, rng)])) for _ in range(100)]
figure, axes = plt.subplots(1, 4, figsize=(9, 2.6), layout="constrained")
for axis, (name, matrix) in zip(
    axes,
    {
        "exact": exact,
        "1 draw an example": draws[0],
        "100 draws": np.mean(draws, axis=0),
        "empirical": empirical,
    }.items(),
    strict=True,
):
    limit = np.abs(exact).max()
    axis.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit)
    distance = np.linalg.norm(matrix - exact) / np.linalg.norm(exact)
    axis.set(title=f"{name}: off by {distance:.0%}", xticks=[], yticks=[])
    print(f"{name}: |matrix - exact| / |exact| = {distance:.3f}")

# %% [markdown]
# More draws come nearer to the exact matrix. More data would not bring the empirical matrix nearer:
# it has another limit. The two would agree if labels came as often as the model says. During
# training they do not: at the start here the model is wrong on most digits, and of some it is
# nearly certain.
#
# ## Where the difference hurts
#
# The empirical matrix is made of the gradients that training drives to zero. Where the model fits,
# $\mathcal{D}\theta \to 0$, and the empirical matrix goes to zero as the **square** of the
# gradients. Its step, gradient over matrix, then grows. Where the model is badly wrong, the
# empirical matrix is too large and the step too short. The Fisher matrix does not see the labels.
#
# A case with one parameter shows it. The data is $y = 2x$ without noise, the model
# $\mathcal{N}(\theta x, 1)$. The Fisher matrix is $\mathbb{E}[x^2]$, the empirical one is
# $\mathbb{E}[(\theta x - y)^2 x^2]$.

# %%
inputs = rng.normal(size=500)
for start in (12.0, 3.0, 2.1):
    residual = (start - 2) * inputs
    g = np.mean(residual * inputs)
    step_fisher = g / np.mean(inputs**2)
    step_empirical = g / np.mean(residual**2 * inputs**2)
    print(
        f"theta = {start:4}: the way to the minimum is {start - 2:5.1f}, "
        f"Fisher steps {step_fisher:5.2f}, empirical {step_empirical:5.2f}"
    )

# %% [markdown]
# The Fisher step is right everywhere: the loss is quadratic. The empirical step is too short far
# away and too long nearby.
#
# Now training: softmax regression on 500 digits of 4 x 4 pixels, which it can fit. Every update is
# a damped natural gradient on all images. Only the matrix differs. The sampled one has ten draws an
# example: one draw is too noisy for 170 parameters and 500 images. KFC draws once and averages over
# many mini-batches instead.

# %% alt="Loss over updates for light and heavy damping: light, the empirical matrix starts late"
shown = digits.train_images[:500].astype(float).reshape(-1, 4, 2, 4, 2, 1).mean(axis=(2, 4))
shown, classes = (shown - shown.mean(axis=0)) / shown.std(), digits.train_labels[:500]
with_ones = np.hstack([np.ones((500, 1)), shown.reshape(500, 16)])


def matrix_of(kind, p):
    """The Fisher matrix (170, 170) of the 10 x 17 weights, or the empirical one."""
    if kind == "exact":
        F_R = p[:, :, None] * np.eye(10) - p[:, :, None] * p[:, None, :]
        F = np.einsum("mcd,mp,mq->cpdq", F_R, with_ones, with_ones, optimize=True)
        return F.reshape(170, 170) / len(p)
    targets = [draw(p, rng) for _ in range(10)] if kind == "sampled" else [classes]
    gradients = [np.einsum("mc,mp->mcp", p - np.eye(10)[y], with_ones) for y in targets]
    return outer(np.reshape(gradients, (-1, 170)))


figure, panels = plt.subplots(1, 2, figsize=(8, 3), layout="constrained", sharey=True)
for damping, axes in zip((1e-4, 1e-1), panels, strict=True):
    for kind, style in (("exact", "-"), ("sampled", "--"), ("empirical", ":")):
        W, losses, along = np.zeros((10, 17)), [], {}
        for update in range(40):
            z = with_ones @ W.T
            p = np.exp(z - z.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
            losses.append(-np.log(p[np.arange(500), classes]).mean())
            g = (p - np.eye(10)[classes]).T @ with_ones / 500
            F = matrix_of(kind, p)
            if kind == "empirical" and update in (0, 9, 39):
                along[update] = g.ravel() @ F @ g.ravel()
                along[update] /= g.ravel() @ matrix_of("exact", p) @ g.ravel()
            F = F + damping * np.eye(170)
            W -= 0.3 * np.linalg.solve(F, g.ravel()).reshape(W.shape)
        axes.plot(losses, style, label=kind)
        print(
            f"damping {damping:.4f}, {kind:9}: after 5 updates {losses[5]:.3f}, 39 {losses[39]:.4f}"
        )
    for update, ratio in along.items():
        print(f"damping {damping:.4f}, empirical over exact after {update:2} updates: {ratio:.1f}")
    axes.set(xlabel="updates", yscale="log", title=f"damping {damping:g}")
panels[0].set(ylabel="training loss (nats)")
panels[0].legend()

# %% [markdown]
# On the left the damping is light and the matrix decides. *Empirical over exact* says how large the
# empirical matrix is along the gradient, in terms of the exact one. At first it is too large, and
# the steps are too short. When most digits fit it is too small: the steps are long, and for a while
# it even overtakes the exact matrix. Then it stalls: a few digits that are predicted wrongly with
# confidence make most of the gradient, and most of the empirical matrix too, which is too large
# along it again. On the right the damping is heavier than most of the matrix, and in the end all
# are equal. A method that only works with heavy damping may be hiding a wrong matrix.
#
# ## Exercises
#
# Replace `...` by your code and run the cell again. `check` says what is wrong. It never shows the
# solution; the [solutions](solutions/chapter_1.py) are in a folder of their own.
#
# **1.1** The score of the logits: $\mathcal{D}z$ of each example, for the softmax.


# %%
def score(z, y):
    """Logits z (M, C), classes y (M,) -> derivatives of each example's own loss (M, C)."""
    ...


check("1.1", score)

# %% [markdown]
# **1.2** The exact Fisher matrix from Jacobians and probabilities.


# %%
def exact_fisher(J, p):
    """J (M, C, n), p (M, C) -> F (n, n)."""
    ...


check("1.2", exact_fisher)

# %% [markdown]
# **1.3** The Fisher matrix from one backward pass. `u` has a uniform number for each example. The
# drawn class is the first one whose cumulative probability is above $u$. Decide yourself which
# arguments you need.


# %%
def sampled_fisher(J, p, labels, u):
    """J (M, C, n), p (M, C), labels (M,), u (M,) -> an estimate of F (n, n)."""
    ...


check("1.3", sampled_fisher)

# %% [markdown]
# **1.4** The step of the damped natural gradient, $\delta$.


# %%
def natural_step(F, g, damping, learning_rate):
    """F (n, n), g (n,) -> what is added to theta (n,)."""
    ...


check("1.4", natural_step)

# %% [markdown]
# ## What to remember
#
# - The Fisher matrix measures a step by the change of the predictions.
# - The natural gradient is steepest descent with that measure. It does not see the scale of inputs.
# - Targets come from the model. Labels give another matrix, which vanishes where the model fits.
# - $\mathbf{F}$ has as many rows as there are parameters: 35 here, 89,578 in the paper's network.
#   [Chapter 2](2_kronecker.md) makes it small.
