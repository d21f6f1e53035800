# %% [markdown]
# # Chapter 4: damping and trust
#
# **Question.** The inverse of a nearly singular matrix gives huge steps. How far can a quadratic
# model be trusted?
#
# **You need** [chapter 3](3_convolutions.md) and the paper's sections 2.2 and 3.2. **You will be
# able to** damp the factors, say what $\pi$ is for, compute the clip without forming a matrix, say
# what it cannot see, and use the Levenberg-Marquardt rule.
#
# *Beside other courses:* texts on optimization usually add $\gamma \mathbf{I}$ and go on. The [KFAC
# tutorial](https://github.com/f-dangel/kfac-tutorial) leaves damping and the optimizer out. Here
# damping is the subject: each safeguard is shown where it works and where it fails.

# %%
import warnings

import matplotlib.pyplot as plt
import numpy as np

import kfcnet.data
from kfcnet.batches import Batch, BatchSequence
from kfcnet.config import load_config
from kfcnet.course import check
from kfcnet.curvature import FisherOperator, KroneckerFisher, damped_inverses, precondition
from kfcnet.losses import SoftmaxCrossEntropy
from kfcnet.network import build_network
from kfcnet.ops import get_ops
from kfcnet.optimizers import build_optimizer

digits = kfcnet.data.load(load_config("digits_kfc").data)
images = (digits.train_images.astype(float) - digits.mean) / 4
labels = digits.train_labels
layers = [
    {"layer": "conv", "name": "conv1", "filters": 6, "kernel": 3, "padding": 1, "std": "he"},
    {"layer": "relu"},
    {"layer": "max_pool", "size": 2, "stride": 2},
    {"layer": "conv", "name": "conv2", "filters": 6, "kernel": 3, "padding": 1, "std": "he"},
    {"layer": "relu"},
    {"layer": "dense", "name": "fc", "units": 10, "std": 0.05},
]
ops = get_ops("cpu", "float64")
network = build_network(layers, (8, 8, 1), ops, seed=0)
loss = SoftmaxCrossEntropy(ops, seed=0)
batch, classes = images[:256], labels[:256]
factors = KroneckerFisher.estimate(network, loss, batch, draws=None)
network.backward(loss.evaluate(network.forward(batch), classes).dz)
network.compute_gradient()
gradient = network.gradient.copy()


def loss_at(theta):
    with network.using(theta):
        return loss.evaluate(network.forward(batch), classes).totals[0] / len(batch)


# %% [markdown]
# ## A quadratic model and its region of trust
#
# Near $\theta$ the loss is about $h + g^\top \delta + \tfrac{1}{2} \delta^\top \mathbf{F} \delta$.
# The model is best for small steps. Where $\mathbf{F}$ has a small eigenvalue the model says: the
# loss never turns up again, go far. There it is wrong first. **Tikhonov damping** adds
# $\tfrac{c}{2} |\delta|^2$, a price for length. Where the sum is least, its gradient is zero:
#
# $$g + \mathbf{F} \delta + c \, \delta = 0, \qquad \text{so} \qquad
# \delta = -(\mathbf{F} + c \mathbf{I})^{-1} g, \qquad c = \lambda + \gamma$$
#
# The same $\delta$ is best among all steps that are not longer than it is: $c$ is the multiplier of
# that limit. So damping **is** a region of trust. A larger $c$ is a smaller region.
#
# $\lambda$ is weight decay, which belongs to the objective. $\gamma$ is damping, which belongs to
# our doubt. In a direction with the eigenvalue $\eta$ of $\mathbf{F}$ the step is $1/(\eta + c)$
# times the gradient: a natural gradient where $\eta \gg c$, a gradient step of rate $1/c$ where
# $\eta \ll c$.

# %% alt="Predicted and actual loss over damping: with little damping the actual loss explodes"
exact = FisherOperator(network, loss, batch)
dampings = np.logspace(-4, 1, 16)
predicted, actual = [], []
for c in dampings:
    step = -factors.solve(gradient, c)
    predicted.append(gradient @ step + step @ (exact @ step) / 2)
    actual.append(loss_at(network.theta + step) - loss_at(network.theta))
figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
axes.semilogx(dampings, predicted, "o-", label="predicted by the quadratic model")
axes.semilogx(dampings, actual, "s-", label="actual")
axes.set(xlabel="damping $c$", ylabel="change of the loss (nats)", ylim=(-3, 8))
axes.axhline(0, color="black", linewidth=0.5)
axes.legend()
best = dampings[np.argmin(actual)]
print(f"the full step lowers the loss most with a damping of {best:.1g}: by {-min(actual):.2f}")
print(f"with {dampings[0]:.0e} the loss rises by {actual[0]:.1f}")

# %% [markdown]
# Both curves explode on the left. The step is KFC's, the model has the exact $\mathbf{F}$: where
# KFC thinks the curvature is small and it is not, the step is too long. Damping guards against the
# error of the quadratic model and against the error of the approximation.
#
# ## The factored form, and π
#
# $\mathbf{\Omega} \otimes \mathbf{\Gamma} + c \mathbf{I}$ is no Kronecker product, so its inverse
# is not a product of inverses. **Factored Tikhonov damping** (Eq. 7, 21) gives each factor a share:
#
# $$\big(\mathbf{\Omega} + \pi \sqrt{c} \, \mathbf{I}\big) \otimes
# \big(\mathbf{\Gamma} + \tfrac{1}{\pi} \sqrt{c} \, \mathbf{I}\big) =
# \mathbf{\Omega} \otimes \mathbf{\Gamma} + c \, \mathbf{I} +
# \sqrt{c} \, \big( \pi \, \mathbf{I} \otimes \mathbf{\Gamma} +
# \tfrac{1}{\pi} \, \mathbf{\Omega} \otimes \mathbf{I} \big)$$
#
# The last term is an error. Neither of its parts has a negative eigenvalue, so its size is its
# trace:
#
# $$\sqrt{c} \, \big( \pi \dim(\mathbf{\Omega}) \, \mathrm{tr}\,\mathbf{\Gamma} +
# \tfrac{1}{\pi} \dim(\mathbf{\Gamma}) \, \mathrm{tr}\,\mathbf{\Omega} \big)$$
#
# A sum $\pi x + y / \pi$ is least where both terms are equal, at $\pi = \sqrt{y / x}$ (Eq. 8):
#
# $$\pi = \sqrt{ \frac{\mathrm{tr}\,\mathbf{\Omega} / \dim \mathbf{\Omega}}
# {\mathrm{tr}\,\mathbf{\Gamma} / \dim \mathbf{\Gamma}} }$$
#
# A product does not know its factors: $10\,\mathbf{\Omega} \otimes \tfrac{1}{10}\mathbf{\Gamma}$ is
# the same matrix. With $\pi$ the damped step is the same, too. With $\pi = 1$ it is not. The error
# that is left makes the damping heavier than was asked for: how much, the last lines say.

# %% alt="Left: factored damping exceeds exact damping. Right: with pi the step ignores the scale"
Omega, Gamma = factors.factors[1]
g = network.views(gradient)[1]
c = 0.01
figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
products = np.outer(np.linalg.eigvalsh(Gamma), np.linalg.eigvalsh(Omega)).ravel()
order = np.argsort(products)[::-1]
pi = np.sqrt((np.trace(Omega) / len(Omega)) / (np.trace(Gamma) / len(Gamma)))
damped = np.outer(
    np.linalg.eigvalsh(Gamma) + np.sqrt(c) / pi, np.linalg.eigvalsh(Omega) + pi * np.sqrt(c)
).ravel()
for values, style, label in (
    (products, ":", "undamped"),
    (products + c, "-", "exact damping"),
    (damped, "--", "factored damping"),
):
    axes[0].semilogy(np.maximum(values[order], 1e-8), style, label=label)
axes[0].set(xlabel="number of the eigenvalue", ylabel="eigenvalue", title="conv2, c = 0.01")
axes[0].legend()
scales = np.logspace(-3, 3, 13)
reference = precondition(g, *damped_inverses(Omega, Gamma, c))
with_pi, without = [], []
for s in scales:
    moved = s * Omega, Gamma / s
    with_pi.append(precondition(g, *damped_inverses(*moved, c)))
    shifted = [factor + np.sqrt(c) * np.eye(len(factor)) for factor in moved]
    without.append(np.linalg.inv(shifted[1]) @ g @ np.linalg.inv(shifted[0]))
for steps, style, label in ((with_pi, "o-", "with $\\pi$"), (without, "s--", "$\\pi = 1$")):
    lengths = [np.linalg.norm(step) / np.linalg.norm(reference) for step in steps]
    axes[1].loglog(scales, lengths, style, label=label)
    print(f"{label}: longest step over shortest {max(lengths) / min(lengths):.1f}")
axes[1].set(xlabel="$s$ in $s\\Omega \\otimes \\Gamma / s$", ylabel="length of the step")
axes[1].legend()
(of_Omega, U), (of_Gamma, V) = np.linalg.eigh(Omega), np.linalg.eigh(Gamma)
curvature, slope = np.outer(of_Gamma, of_Omega), V.T @ g @ U  # in the basis of the eigenvectors
for c in (1e-5, 1e-3, 1e-1, 1, 10, 1000):
    best = slope / (curvature + c)
    factored = V.T @ precondition(g, *damped_inverses(Omega, Gamma, c)) @ U
    gains = [(slope * n).sum() - ((curvature + c) * n**2).sum() / 2 for n in (factored, best)]
    length = np.linalg.norm(factored) / np.linalg.norm(best)
    print(
        f"c = {c:6g}: against exact damping the factored step has {length:.2f} of the length "
        f"and {gains[0] / gains[1]:.2f} of the reduction"
    )

# %% [markdown]
# **Where the factored form fails.** The damping has $c$, the error has $\sqrt{c}$. Where $c$ is far
# below the curvature along the gradient, neither matters. In between, where one trains, the
# factored step is too short: about half as long, and a third of the reduction is lost. Only where
# $c$ is hundreds of times the largest curvature does it outgrow its root, and the two forms agree
# again. The factored form errs on the safe side.
# Exact damping is possible: in the basis of both factors' eigenvectors the block is diagonal, and
# $c$ is added to the products of their eigenvalues. The last lines of the cell do that. For
# training it is `optimizer.tikhonov: exact`, which costs eigenvectors in place of inverses.
#
# ## The clip
#
# KFC-pre has a second safeguard. It measures the step $v = -\alpha \hat\nabla h$ by
#
# $$\nu = v^\top \mathbf{F} v + \lambda |v|^2$$
#
# and multiplies $v$ by $\min(1, \sqrt{C / \nu})$. $\mathbf{F}$ is the **exact** Fisher matrix of a
# part of the mini-batch. It is never formed. With $r = \mathbf{J} v$, the derivative of an
# example's logits along $v$, and $p$ its probabilities, $v^\top \mathbf{F} v$ is the mean over the
# examples of
#
# $$r^\top \mathbf{F}_R \, r = \sum_k p_k r_k^2 - \Big(\sum_k p_k r_k\Big)^2$$
#
# A **forward-mode pass** gives $r$: it goes through the layers as the forward pass does, and takes
# along of every value $x$ its derivative $R(x)$ along $v$. The image does not depend on the
# parameters, so its $R$ is zero. Each layer has a rule, by the chain rule:
#
# - *Convolution, dense.* The value is $[\![a]\!]_H \bar{\mathbf{W}}^\top$, its derivative
#   $[\![R(a)]\!] \, \mathbf{W}^\top + [\![a]\!]_H \bar{\mathbf{V}}^\top$, where
#   $\bar{\mathbf{V}}$ is this layer's part of $v$. In the first term the bias is left out, because
#   the one in front of a patch does not change.
# - *ReLU.* $R(a)$ where $a > 0$, else zero.
# - *Max-pooling.* $R$ at the place of the largest value of the window.
# - *Average pooling.* The mean of $R$ over the window.
#
# So $\nu$ costs a pass with two products a layer, and no matrix. By chapter 1,
# $v^\top \mathbf{F} v$ is about twice the KL divergence of the predictions. The root is there
# because $\nu$ is quadratic: a step of $s$ times the length has $s^2$ times the $\nu$.

# %% alt="Actual twice the KL divergence over nu: equal for small steps, saturating for large ones"
z = network.forward(batch)
p = loss.predictive(z).copy()
v = -factors.solve(gradient, 0.01)
r = network.tangent(v, len(batch))  # the forward-mode pass
of_pass = ((p * r**2).sum(axis=1) - (p * r).sum(axis=1) ** 2).mean()
print(f"v^T F v: {of_pass:.6g} by the pass, {v @ (exact @ v):.6g} by the operator")
nus, divergences = [], []
for length in np.logspace(-2, 1, 16):
    step = length * v
    nus.append(step @ (exact @ step))
    with network.using(network.theta + step):
        q = loss.predictive(network.forward(batch))
    divergences.append(2 * (p * np.log(p / np.maximum(q, 1e-300))).sum(axis=1).mean())
figure, axes = plt.subplots(figsize=(4.5, 3), layout="constrained")
axes.loglog(nus, divergences, "o-")
axes.loglog(nus, nus, ":", color="black", label="equal")
axes.axvline(0.3, color="#D55E00", linestyle="--", label="C = 0.3")
axes.set(xlabel="$\\nu$ of the step", ylabel="2 KL of the predictions")
axes.legend()
within = [d / nu for nu, d in zip(nus, divergences, strict=True) if nu < 0.3]
print(f"for nu below 0.3, 2 KL is {min(within):.2f} to {max(within):.2f} times nu")

# %% [markdown]
# **What the clip cannot see.**
#
# - *Momentum.* The clip shortens $v$ before it goes into the velocity. Equal steps $v$ add up to
#   $v (1 + \mu + \mu^2 + \dots) = v / (1 - \mu)$, ten times $v$ for $\mu = 0.9$. $\nu$ is
#   quadratic: it comes to a hundred times $C$.
# - *Confident mistakes.* An example that is predicted wrongly with a probability near 1 has
#   $\mathbf{F}_R \approx 0$. It adds nothing to $\nu$ and nothing to $\mathbf{\Gamma}$, but its
#   gradient is large.
# - *What changes behind a ReLU.* $\mathbf{F}$ is local. A step that switches units off looks small
#   beforehand. If a unit is off for all inputs, its weights get no gradient any more: only a change
#   of the layers below, or weight decay, can bring it back. The project's records
#   [count such maps](../../results/paper/README.md#how-training-begins).


# %%
def active(theta):
    """The share of the last ReLU's outputs that are not zero."""
    with network.using(theta):
        network.forward(batch)
    return (network.weighted[-1].inputs > 0).mean()


velocity = np.zeros_like(v)
clipped = v * np.sqrt(0.3 / (v @ (exact @ v)))
print(f"before     : nu   0.0 C, loss {loss_at(network.theta):5.2f}, ", end="")
print(f"{active(network.theta):.0%} active")
for update in range(1, 21):
    velocity = 0.9 * velocity + clipped
    if update in (1, 5, 20):
        nu, there = velocity @ (exact @ velocity), network.theta + velocity
        print(f"velocity {update:2}: nu {nu / 0.3:5.1f} C, loss {loss_at(there):5.2f}, ", end="")
        print(f"{active(there):.0%} active")
z_wrong = np.array([0.0, 12.0])
p_wrong = np.exp(z_wrong) / np.exp(z_wrong).sum()
F_R = np.diag(p_wrong) - np.outer(p_wrong, p_wrong)
size = np.linalg.norm(p_wrong - [1, 0])
print(f"a confident mistake: gradient {size:.2f}, F_R {np.linalg.norm(F_R):.0e}")

# %% [markdown]
# ## A sweep in which each of them fails
#
# KFC-pre on the digits, 40 updates, from little damping to much and from low rates to high: without
# the clip, with $C = 0.3$ (the paper's cap, from memory of its appendix), and with
# $C (1 - \mu)^2 = 0.003$, which counts the momentum. The colour is the training loss at the end.
# A network that knows nothing has a loss of $\log 10 = 2.3$ nats.


# %% alt="Loss over damping and learning rate for three clips: the first two leave a bad corner"
def final_loss(learning_rate, damping, clip):
    settings = [
        f"optimizer.learning_rate={learning_rate}",
        f"optimizer.damping={damping}",
        f"optimizer.clip={clip}",
        "optimizer.statistics_period=1",
        "optimizer.inverse_period=1",
    ]
    config = load_config("digits_kfc", settings)
    net = build_network(layers, (8, 8, 1), get_ops("cpu", "float32"), seed=0)
    optimizer = build_optimizer(config.optimizer, net, SoftmaxCrossEntropy(net.ops, seed=0))
    sequence = BatchSequence(len(labels), 128, seed=0)
    scaled = images.astype(np.float32)
    optimizer.prepare([Batch(scaled[:512], labels[:512])])
    with np.errstate(all="ignore"):
        for step in range(40):
            indices = sequence.indices(step)
            optimizer.step(Batch(scaled[indices], labels[indices]))
        z = net.forward(scaled)
        return net.ops.to_numpy(optimizer.loss.evaluate(z, labels).totals)[0] / len(labels)


rates, sweep = (0.01, 0.03, 0.1, 0.3), (1e-3, 1e-2, 1e-1, 1.0)
figure, panels = plt.subplots(1, 3, figsize=(9.5, 3), layout="constrained")
clips = {"no clip": "null", "C = 0.3": 0.3, "C = 0.003": 0.003}
for axis, (title, clip) in zip(panels, clips.items(), strict=True):
    table = np.array([[final_loss(rate, damping, clip) for rate in rates] for damping in sweep])
    table = np.nan_to_num(table, nan=np.inf)
    picture = axis.imshow(np.minimum(table, 3), cmap="viridis", vmin=0, vmax=3)
    for (row, column), value in np.ndenumerate(table):
        text, colour = f"{value:.2f}" if value < 100 else "lost", "black" if value > 2 else "white"
        axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=7)
    axis.set(xticks=range(4), xticklabels=rates, yticks=range(4), yticklabels=sweep)
    axis.set(xlabel="learning rate", title=title)
    good, lost = (table < 0.5).sum(), (table > np.log(10)).sum()
    print(f"{title:9}: {good} of 16 are below 0.5 nats, {lost} are worse than chance")
panels[0].set(ylabel="damping")
figure.colorbar(picture, ax=panels, label="training loss (nats), cut at 3")
# %% [markdown]
# Read the corners. *Little damping, high rate*: lost without the clip. *Much damping, low rate*:
# safe and slow, the step is a small gradient step. The clip of 0.3 bounds each step and hardly
# helps here: the momentum adds the steps up. The clip that counts momentum saves the corner.
# `kfcnet.fit` takes it where a damping is given. The paper has $\gamma = 0.001$, and tunes the
# rate.
#
# ## Full K-FAC: damping that adapts
#
# K-FAC (appendix B.2) asks after a step how good its model was:
#
# $$\rho = \frac{h(\theta + \delta) - h(\theta)}{M(\delta) - M(0)}, \qquad
# M(\delta) = h + g^\top \delta + \tfrac{1}{2} \delta^\top (\mathbf{F} + c \mathbf{I}) \delta$$
#
# Learning rate and momentum come out of the same model. K-FAC's step is
# $\delta = -\alpha \hat\nabla h + \mu \delta_0$, with the last step $\delta_0$, and $M$ is least
# where both derivatives are zero: two equations for $\alpha$ and $\mu$. They take products with the
# exact $\mathbf{F}$, as the clip does.
#
# If $\rho > \tfrac{3}{4}$ the model deserves trust and the damping shrinks. If
# $\rho < \tfrac{1}{4}$ the damping grows. This is the **Levenberg-Marquardt** rule. So the start
# value should not matter. Does it?
#
# K-FAC has two dampings. $\rho$ changes the one in $M$, which decides $\alpha$ and $\mu$. The one
# in the factors, which decides the direction $\hat\nabla h$, begins at the same value. It is
# changed every 20 updates: of three values, one smaller and one larger, K-FAC keeps the one whose
# $M$ is least.


# %% alt="Damping over updates from three start values: all fall, the largest fastest"
def adapted_run(start, batch_size):
    """(dampings, losses of the mini-batches, loss of all images) of 40 updates of K-FAC."""
    settings = {
        "name": "kfac",
        "batch_size": batch_size,
        "damping": start,
        "damping_period": 1,
        "damping_decay": 0.8,
        "initial_examples": 720,
    }
    config = load_config("digits_kfc", [f"optimizer={settings}"])
    net = build_network(layers, (8, 8, 1), get_ops("cpu", "float32"), seed=0)
    optimizer = build_optimizer(config.optimizer, net, SoftmaxCrossEntropy(net.ops, seed=0))
    sequence = BatchSequence(len(labels), batch_size, seed=0)
    scaled, trace, losses = images.astype(np.float32), [start], []
    optimizer.prepare([Batch(scaled[:720], labels[:720])])
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of factors without an inverse, where a run is lost
        for step in range(40):
            indices = sequence.indices(step)
            try:
                totals = optimizer.step(Batch(scaled[indices], labels[indices])).totals
            except FloatingPointError:  # the quadratic model is not finite any more
                return trace, losses, np.inf
            losses.append(net.ops.to_numpy(totals)[0] / batch_size)
            trace.append(optimizer.damping)
        totals = optimizer.loss.evaluate(net.forward(scaled), labels).totals
    return trace, losses, net.ops.to_numpy(totals)[0] / len(labels)


figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
for start in (0.01, 0.1, 10.0):
    trace, losses, _ = adapted_run(start, 720)
    axes.semilogy(trace, label=f"start {start:g}")
    print(f"start {start:6g}: damping {trace[-1]:.3g} and loss {losses[-1]:.3f} after 40 updates")
axes.set(xlabel="updates", ylabel="damping of the model")
axes.legend()

# %% [markdown]
# From 10 the damping falls nearly as fast as it may, from 0.1 and 0.01 more slowly, and sometimes
# it rises. All three come to a small loss, so the start matters little for the result, although the
# dampings are still far apart after 40 updates. From much less, such as 0.001, the first steps go
# so far beyond where the model holds that rounding decides where the run ends.
#
# **Where the rule fails.** $\rho$, $\alpha$ and $\mu$ are all taken from **one** mini-batch. A step
# can fit that mini-batch and harm the objective, and $\rho$ does not see it. So the last sweep goes
# over the size of the mini-batch. The loss is over all training images.

# %%
for size in (720, 128, 32):
    ends = [adapted_run(start, size)[2] for start in (0.01, 0.1, 10.0)]
    good = sum(end < 0.1 for end in ends)
    print(f"M = {size:3}: {good} of {len(ends)} starts end with a loss below 0.1 nats")

# %% [markdown]
# With half of the training images in a mini-batch the rule works from every start. With smaller
# ones it trusts the model too much: a loss that went down on the mini-batch lets the damping
# shrink. The price of the rule is one forward pass more and large mini-batches. KFC-pre takes a
# fixed damping and tunes it.
#
# ## Exercises
#
# [Solutions](solutions/chapter_4.py) are in a folder of their own.
#
# **4.1** $\pi$ with the trace norm.


# %%
def pi_of(Omega, Gamma):
    """Omega (P, P), Gamma (I, I) -> a number."""
    ...


check("4.1", pi_of)

# %% [markdown]
# **4.2** The damped factors.


# %%
def damped_factors(Omega, Gamma, c):
    """Omega (P, P), Gamma (I, I), c = lambda + gamma -> (damped Omega, damped Gamma)."""
    ...


check("4.2", damped_factors)

# %% [markdown]
# **4.3** What the clip multiplies a step by.


# %%
def clip_scale(nu, C):
    """nu of the step and its cap -> a number, at most 1."""
    ...


check("4.3", clip_scale)

# %% [markdown]
# **4.4** $\nu$ of a step from the forward-mode pass. All entries of $v$ are decayed.


# %%
def nu_of(p, r, v, weight_decay):
    """Probabilities p (M, C), derivatives r (M, C) of the logits along v (n,) -> a number."""
    ...


check("4.4", nu_of)

# %% [markdown]
# **4.5** The Levenberg-Marquardt rule, with a factor below 1.


# %%
def adapted(damping, rho, factor):
    """The new damping after a step with the reduction ratio rho."""
    ...


check("4.5", adapted)

# %% [markdown]
# ## What to remember
#
# - Damping is a price for length where the model knows nothing. Weight decay belongs to the
#   objective; both are in $c$.
# - The factored form is an approximation. $\pi$ makes it independent of how a scale is shared.
# - The clip bounds the change of the predictions by one step, at the price of a forward-mode pass.
#   Momentum, confident mistakes and dead units escape it.
# - With the Levenberg-Marquardt rule the start of the damping matters little, if mini-batches are
#   large. In 40 updates it does not come to one value from all starts. [Chapter 5](5_training.md)
#   trains.
