# %% [markdown]
# # Chapter 5: training, and inside a kernel
#
# **Question.** Does KFC pay? In updates, in seconds, on which problem, at which batch size?
#
# **You need** [chapter 4](4_damping.md) and the paper's section 5. **You will be able to** compare
# two optimizers fairly, read the records of this project, act when a run diverges, and follow one
# tile of $\mathbf{\Omega}$ through a CUDA kernel.
#
# *Beside other courses:* [Dive into Deep Learning](https://d2l.ai/chapter_optimization/index.html)
# compares optimizers on a small regression, each with one learning rate, and mini-batch sizes by
# seconds: we learned from it to draw both. Here the learning rate is tuned for each method and each
# size, the problem is the paper's, and its numbers come from recorded runs. The [KFAC
# tutorial](https://github.com/f-dangel/kfac-tutorial) has neither training nor kernels.

# %%
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import kfcnet
import kfcnet.data
from kfcnet.batches import Batch, BatchSequence
from kfcnet.config import load_config
from kfcnet.course import check
from kfcnet.curvature import input_factor
from kfcnet.losses import SoftmaxCrossEntropy
from kfcnet.network import build_network
from kfcnet.ops import get_ops
from kfcnet.optimizers import build_optimizer
from kfcnet.runs.identity import group_by_seed
from kfcnet.runs.labels import method
from kfcnet.runs.metrics import first_crossing
from kfcnet.runs.read import read_run

ROOT = Path(kfcnet.__file__).parents[1]
digits = kfcnet.data.load(load_config("digits_kfc").data)
images = ((digits.train_images.astype(float) - digits.mean) / 4).astype(np.float32)
labels = digits.train_labels
layers = [
    {"layer": "conv", "name": "conv1", "filters": 8, "kernel": 3, "padding": 1, "std": "he"},
    {"layer": "relu"},
    {"layer": "conv", "name": "conv2", "filters": 8, "kernel": 3, "padding": 1, "std": "he"},
    {"layer": "relu"},
    {"layer": "max_pool", "size": 2, "stride": 2},
    {"layer": "dense", "name": "fc", "units": 10, "std": 0.05},
]

# %% [markdown]
# ## The whole algorithm
#
# For each mini-batch, KFC-pre does this (appendix B.1; one page of it: [the summary](summary.md)):
#
# $$\begin{aligned}
# \mathbf{\Omega}, \mathbf{\Gamma} &\leftarrow \text{running averages, every } T_s \text{ updates}
# && \text{chapters 1 to 3} \\
# [\mathbf{\Omega}^{(\gamma)}]^{-1}, [\mathbf{\Gamma}^{(\gamma)}]^{-1} &\leftarrow
# \text{inverses of the damped factors, every } T_f \text{ updates} && \text{chapter 4} \\
# v &\leftarrow -\alpha \, [\mathbf{\Gamma}^{(\gamma)}]^{-1} (\nabla h) \,
# [\mathbf{\Omega}^{(\gamma)}]^{-1} && \text{Eq. 22} \\
# v &\leftarrow v \min(1, \sqrt{C / \nu}) && \text{chapter 4} \\
# p &\leftarrow \mu p + v, \qquad \theta \leftarrow \theta + p && \text{momentum}
# \end{aligned}$$
#
# At the end the **average** of the iterates is used. SGD has $v = -\alpha \nabla h$ in their place,
# without factors and without the clip: it has no inverse that could make a step long.
#
# ## A fair comparison on the digits
#
# Both methods get the same network, start and mini-batches. Each gets its own learning rate: the
# best of six, by the training loss near the end (the paper: by the training error). Comparing at
# one common rate would compare nothing. The best rate must not be the smallest or the largest one
# that was tried: then a better one may lie outside. So the rates are printed.
#
# "Near the end" is a mean over the last quarter of the evaluations. The last one alone would do for
# most runs, but not for one that diverges: its loss goes up to thousands, and back to exactly zero
# whenever all images happen to be on the right side. By the last evaluation such a run may win.


# %%
def trained(name, learning_rate, batch_size, updates):
    """[(update, processor seconds, training loss, training error)] of a run, averaged iterates."""
    settings = [f"optimizer.learning_rate={learning_rate}", f"optimizer.batch_size={batch_size}"]
    if name == "digits_kfc":
        settings += ["optimizer.statistics_period=1", "optimizer.inverse_period=1"]
    config = load_config(name, settings).optimizer
    network = build_network(layers, (8, 8, 1), get_ops("cpu", "float32"), seed=0)
    loss = SoftmaxCrossEntropy(network.ops, seed=0)
    optimizer = build_optimizer(config, network, loss)
    sequence, rows, seconds = BatchSequence(len(labels), batch_size, seed=0), [], 0.0
    if name == "digits_kfc":
        optimizer.prepare([Batch(images, labels)])
    for update in range(updates + 1):
        if update % max(1, updates // 80) == 0:
            with network.using(optimizer.average), np.errstate(all="ignore"):
                totals = loss.evaluate(network.forward(images), labels).totals
            rows.append((update, seconds, *(network.ops.to_numpy(totals) / len(labels))))
        indices = sequence.indices(update)
        started = time.process_time()
        with np.errstate(all="ignore"):
            optimizer.step(Batch(images[indices], labels[indices]))
        seconds += time.process_time() - started
    return np.array(rows)


RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
NAMES = {"digits_kfc": "KFC-pre", "digits_sgd": "SGD"}


def best_run(name, batch_size, updates):
    """(learning rate, rows) of the rate with the lowest training loss, a mean near the end."""
    runs = {rate: trained(name, rate, batch_size, updates) for rate in RATES}
    means = {rate: rows[len(rows) * 3 // 4 :, 2].mean() for rate, rows in runs.items()}
    rate = min(RATES, key=lambda rate: np.nan_to_num(means[rate], nan=np.inf))
    return rate, runs[rate]


def updates_to(rows, level):
    """The first update at which the training error is at most `level`, or infinity."""
    reached = rows[rows[:, 3] <= level]
    return reached[0, 0] if len(reached) else np.inf


# %% alt="Digits: over updates KFC-pre falls faster than SGD, over processor seconds they are equal"
figure, panels = plt.subplots(1, 2, figsize=(8, 3), layout="constrained", sharey=True)
for name, style in (("digits_kfc", "-"), ("digits_sgd", "--")):
    rate, rows = best_run(name, 512, 80)
    for axis, column in zip(panels, (0, 1), strict=True):
        axis.plot(rows[:, column], 100 * rows[:, 3], style, label=NAMES[name])
    first = updates_to(rows, 0.05)
    print(f"{NAMES[name]}, M = 512, rate {rate:g}: 5% training error after {first:.0f} updates")
panels[0].set(xlabel="updates", ylabel="training error (%)", ylim=(0, 40))
panels[1].set(xlabel="processor seconds of training")
panels[0].legend()
# %% [markdown]
# KFC-pre needs fewer updates. In processor time the two are equal on so small a network,
# with statistics and inverses at **every** update. A comparison by updates alone would hide that.
#
# ## Batch size
#
# A better direction pays where the gradient has little noise: with large mini-batches. Section 5.3
# of the paper predicts it, Figure 2 shows it. Each point below has its own best rate.
# Differences of a few updates mean nothing: there is one seed, and an evaluation every two updates.

# %% alt="Updates to 2% training error over the batch size: KFC-pre keeps gaining, SGD less"
sizes, budget = (32, 128, 512), 160
figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
needed = {}
for name, style in (("digits_kfc", "o-"), ("digits_sgd", "s--")):
    best = [best_run(name, size, budget) for size in sizes]
    needed[name] = [float(updates_to(rows, 0.02)) for _, rows in best]
    axes.loglog(sizes, needed[name], style, base=2, label=NAMES[name])
    for size, (rate, _), updates in zip(sizes, best, needed[name], strict=True):
        words = f"2% training error after {updates:.0f} updates"
        print(f"{NAMES[name]:7}, M = {size:3}, rate {rate:g}: {words}")
axes.set(xlabel="mini-batch size M", ylabel="updates to 2% training error", xticks=sizes)
axes.set_xticklabels(sizes)
axes.legend()
# %% [markdown]
# With small mini-batches the two are close: the noise of the gradient decides. With large ones SGD
# stops gaining first. KFC-pre turns examples into fewer updates for longer.
#
# ## CIFAR-10, from the records
#
# A run on CIFAR-10 takes minutes to hours on two cores. So we read runs that are recorded here,
# under `results/paper/runs`. Each has its configuration, its machine and a row per evaluation.

# %% alt="CIFAR-10 errors, seed by seed: KFC-pre is far ahead, SGD's test error ends a little lower"
folders = sorted((ROOT / "results" / "paper" / "runs").glob("cifar_*"))
names = ("KFC-pre, M = 512", "SGD, M = 128")  # Figure 1
runs, drawn = [run for run in map(read_run, folders) if method(run) in names], {}
if not runs:
    print("record: none is here; this chapter needs a checkout of the repository")
figure, panels = plt.subplots(1, 2, figsize=(8, 3), layout="constrained", sharey=True)
for index, name in enumerate(names if runs else ()):
    settings = group_by_seed([run for run in runs if method(run) == name])
    seeds = max(settings, key=lambda runs: (runs[0].metrics["epoch"][-1], len(runs)))
    drawn[name] = seeds
    rate, epochs = seeds[0].config["optimizer"]["learning_rate"], seeds[0].metrics["epoch"][-1]
    print(f"record: {name}: drawn are {len(seeds)} seeds of {epochs:.0f} epochs at rate {rate}")
    crossings = [first_crossing(run.metrics, "test_error", 0.19) for run in seeds]
    if all(crossings):
        updates, passed = np.median([[c.updates, c.epoch] for c in crossings], axis=0)
        print(f"record: {name}: 19% test error after {updates:.0f} updates, {passed:.1f} epochs")
    for number, run in enumerate(seeds):
        for axis, column in zip(panels, ("iteration", "epoch"), strict=True):
            style = {"color": f"C{index}", "linewidth": 0.9}
            axis.plot(run.metrics[column], 100 * run.metrics["train_error"], "--", **style)
            label = None if number else name
            axis.plot(run.metrics[column], 100 * run.metrics["test_error"], label=label, **style)
panels[0].set(xlabel="updates", ylabel="error (%)", title="CIFAR-10", ylim=(0, 50))
panels[1].set(xlabel="epochs", title="dashed: training, solid: test")
panels[0].legend()
# %% [markdown]
# Of each method the setting with the longest runs is drawn, and of equally long ones that with the
# most seeds; the numbers are medians of the seeds. KFC-pre is ahead over updates
# and over epochs. At the end SGD's test error is a little lower, as in the paper: a fast descent of
# the training error is not yet generalisation. [The project's
# figures](../../results/paper/README.md) have all settings.
#
# **Updates against seconds.** An update of KFC-pre costs more. The seconds of these records are not
# compared: runs may share a machine. A fair time is epochs times the cost of an epoch, measured for
# both methods in turns ([rules](../rules.md)). [The first page](../../README.md#results)
# has the times of the paper's milestones. What costs how much stands in the records, too.

# %%
for run in drawn.get(names[0], [])[:1]:
    phases = ("gradient", "statistics", "inverses", "preconditioning", "clip")
    total = run.metrics["seconds"][-1]
    shares = {phase: run.metrics[f"seconds_{phase}"][-1] / total for phase in phases}
    words = ", ".join(f"{phase} {share:.0%}" for phase, share in shares.items())
    print(f"record: {method(run)}: {words}")

# %% [markdown]
# Statistics and inverses are done every $T_s$ and $T_f$ updates: that is how the overhead is kept
# small. Preconditioning does not depend on the batch size, so large mini-batches pay it once for
# more examples.
#
# ## When a run diverges
#
# First try `optimizer.damping=auto`. It bounds the step by what the objective has left to lose, and
# was measured to hold where fixed settings fail ([choosing settings](../settings.md)). To learn
# what goes wrong, and where the paper's settings are to stay:
#
# - **The loss explodes in the first updates.** Look at `clipped` and `nu` in `metrics.csv`. Try a
#   rise of the learning rate: `optimizer.schedule={name: constant, warm_up: 50000}`.
# - **It explodes later, and nothing was clipped.** Look at examples that are wrong with a
#   probability near 1. Try more damping, more weight decay.
# - **`nu` is below C, and still the loss jumps.** It is the momentum. Try a clip of $C (1 -
#   \mu)^2$.
# - **The error gets stuck early.** Look for dead maps in `diagnostics.csv`. Try a lower rate at the
#   start, or He's initialisation.
# - **It is slow, but safe.** Compare the damping with the eigenvalues of the factors in
#   `diagnostics.csv`. Try less damping, then a higher rate.
# - **Only small mini-batches fail.** The factors are noisy. Try a longer timescale of the
#   statistics.
#
# ## Inside a GPU kernel: Ω without a patch matrix
#
# The patch matrix $[\![\mathbf{A}]\!]_H$ is $K^2$ times as large as the activations. A GPU kernel
# never writes it. `kernels/gram_patches.cu` makes its elements when they are needed.
#
# You need no GPU: the tests run the **text of the kernel** compiled by g++, one fiber for each CUDA
# thread. We take a small case: 3 images of 5 x 5 pixels and 2 maps, 3 x 3 kernel.

# %%
sys.path.insert(0, str(ROOT / "tests"))
try:
    from cuda_on_cpu import KernelError, Library, missing

    reason = missing()
except ImportError:
    reason = "the folder tests/ is not here: this part needs a checkout of the repository"
if reason:
    print(f"the kernel does not run here: {reason}")

TILE, DEPTH, K, J, H, W, M = 8, 4, 3, 2, 5, 5, 3
P = 1 + K * K * J
x = np.random.default_rng(0).normal(size=(M, H, W, J)).astype(np.float32)
tiles = -(-P // TILE)
pairs = [(row, column) for row in range(tiles) for column in range(row, tiles)]
print(f"Omega is {P} x {P}: {tiles} x {tiles} tiles, {len(pairs)} on and above the diagonal")
print(f"the patch matrix would have {M * H * W * P} floats; a block keeps {2 * DEPTH * TILE}")

# %% [markdown]
# **Who computes what.** A block of threads has one tile of $\mathbf{\Omega}$. A thread has 4 x 4
# entries of it, in registers. A tile of 8 x 8 has four threads. All go through the rows of the
# patch matrix together, `DEPTH` at a time:
#
# 1. Each thread makes some elements of the next `DEPTH` rows, for the tile's rows (`left`) and for
#    its columns (`right`), in shared memory. Exercise 5.4 is this index arithmetic.
# 2. `__syncthreads()`: now the elements are complete.
# 3. Each thread adds `DEPTH` outer products of four by four to its registers.
# 4. `__syncthreads()`: now all have read, and the next elements may overwrite.

# %%
CONSTANTS = {"TILE": TILE, "DEPTH": DEPTH, "KERNEL_SIZE": K, "IN_MAPS": J, "HEIGHT": H, "WIDTH": W}
CONSTANTS |= {"OUT_HEIGHT": H, "OUT_WIDTH": W, "STRIDE": 1, "PADDING": 1}


def launch(text):
    """What the kernel in `text` writes: partial sums (P, P), NaN where it writes nothing."""
    kernel = Library(text, CONSTANTS, "gram_patches").kernel("gram_patches_slices")
    partials = np.full((1, P, P), np.nan, np.float32)
    kernel.launch((len(pairs), 1), ((TILE // 4) ** 2,), (x, partials, np.int32(M), np.int32(1)))
    return partials[0]


if not reason:
    from kfcnet.ops.cuda import kernels

    text = kernels.source("gram_patches")
    written = launch(text)
    reference = M * input_factor(x.astype(float), kernel_size=K, padding=1)
    error = np.nanmax(np.abs(np.triu(written) - np.triu(reference)))
    print(f"largest difference from input_factor: {error:.0e}")
    print(f"entries written: {np.isfinite(written).sum()} of {P * P}; the rest is the mirror image")

# %% [markdown]
# **One tile, thread by thread.** Block 1 has the tile in row 0, column 1. Below is the kernel's
# loop once more, in Python. A thread is a generator, and `yield` is `__syncthreads()`: it stops
# there until all threads of the block have come to the same place. `left` and `right` are the
# block's shared memory, `sums` are one thread's registers. An element of the patch matrix is looked
# up here; the kernel computes it (exercise 5.4).

# %% alt="Omega's tiles; one is split into its four threads, thread 3 at the lower right"
block, across = 1, TILE // 4
tile_row, tile_column = pairs[block]
patch_rows = np.zeros((M * H * W, tiles * TILE), np.float32)  # the kernel has no such matrix
padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
for row, (m, h, w) in enumerate(np.ndindex(M, H, W)):
    patch_rows[row, :P] = [1, *padded[m, h : h + K, w : w + K].ravel()]


def element(row, column):
    return patch_rows[row, column] if row < len(patch_rows) else 0.0


def thread(number, left, right, tile, second_barrier=True):
    """One thread of gram_patches_slices: fills its 4 x 4 entries of the tile."""
    own_row, own_column = number // across * 4, number % across * 4
    sums = np.zeros((4, 4), np.float32)
    for first in range(0, len(patch_rows), DEPTH):
        for i in range(number, DEPTH * TILE, across**2):
            k, at = divmod(i, TILE)
            left[k, at] = element(first + k, tile_row * TILE + at)
            right[k, at] = element(first + k, tile_column * TILE + at)
        yield "the elements are complete"
        for k in range(DEPTH):
            rows, columns = left[k, own_row : own_row + 4], right[k, own_column : own_column + 4]
            sums += np.outer(rows, columns)  # the kernel: 16 fused multiply-adds
        if second_barrier:
            yield "all have read"
    tile[own_row : own_row + 4, own_column : own_column + 4] = sums


def run_block(order, **how):
    """The tile (TILE, TILE), if the threads always come to a barrier in the given order."""
    left, right = np.zeros((2, DEPTH, TILE), np.float32)
    tile = np.zeros((TILE, TILE), np.float32)
    threads = [thread(number, left, right, tile, **how) for number in order]
    while threads:
        threads = [one for one in threads if next(one, None)]
    return tile


for number in range(across**2):
    columns = sorted({i % TILE for i in range(number, DEPTH * TILE, across**2)})
    row, column = tile_row * TILE + number // across * 4, tile_column * TILE + number % across * 4
    print(
        f"thread {number}: makes columns {columns} of each step; has rows {row} to {row + 3}, "
        f"columns {column} to {column + 3} of Omega"
    )
one, other = run_block([0, 1, 2, 3]), run_block([3, 1, 0, 2])
print("two orders of the threads give the same bits:", np.array_equal(one, other))
if not reason:
    theirs = written[tile_row * TILE :, tile_column * TILE :][:TILE, :TILE]
    print(f"largest difference from the emulated kernel: {np.abs(one - theirs).max():.0e}")

picture = np.full((tiles * TILE, tiles * TILE), np.nan)
for row, column in pairs:
    picture[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE] = 0.15
for other in range(across**2):
    r, c = tile_row * TILE + other // across * 4, tile_column * TILE + other % across * 4
    picture[r : r + 4, c : c + 4] = 0.35 + 0.15 * other
figure, axes = plt.subplots(figsize=(3.4, 3.4), layout="constrained")
axes.imshow(picture, cmap="Blues", vmin=0, vmax=1)
for other in range(across**2):
    r, c = tile_row * TILE + other // across * 4, tile_column * TILE + other % across * 4
    axes.text(c + 1.5, r + 1.5, f"thread {other}", ha="center", va="center", fontsize=6)
for edge in range(0, tiles * TILE + 1, TILE):
    axes.axhline(edge - 0.5, color="black", linewidth=0.5)
    axes.axvline(edge - 0.5, color="black", linewidth=0.5)
axes.axhline(P - 0.5, color="#D55E00", linestyle="--", linewidth=1)
axes.axvline(P - 0.5, color="#D55E00", linestyle="--", linewidth=1)
axes.set(xticks=[0, TILE, 2 * TILE], yticks=[0, TILE, 2 * TILE], title="tiles of $\\Omega$")
# %% [markdown]
# The dashed lines are the end of $\mathbf{\Omega}$: threads beyond it compute zeros and write
# nothing. There are 75 rows and steps of 4, so the last step is filled up with zeros.
#
# **Why two barriers?** Take the second one away: now a fast thread overwrites elements of this step
# with those of the next one, before a slow thread has read them. In our Python the order of the
# threads begins to matter. The emulator watches every access, and finds it in the kernel's text:

# %%
one, other = (run_block(order, second_barrier=False) for order in ([0, 1, 2, 3], [3, 1, 0, 2]))
print("without the second barrier two orders give the same bits:", np.array_equal(one, other))
if not reason:
    barrier = "__syncthreads();  // all have read before the next step overwrites"
    assert text.count(barrier) == 1
    try:
        launch(text.replace(barrier, ""))
    except KernelError as fault:
        print(str(fault).split(": block")[0])

# %% [markdown]
# On a GPU the mistake gives wrong numbers now and then, and no message.
#
# For stride 1 there is a kernel that does less work, `kernels/gram_offsets.cu`. It uses chapter 3:
# entries of $\mathbf{\Omega}$ with the same $\delta' - \delta$ are nearly the same sum.
#
# ## Exercises
#
# [Solutions](solutions/chapter_5.py) are in a folder of their own.
#
# **5.1** One update from the natural gradient $n$. `nu_of_n` is $n^\top \mathbf{F} n + \lambda
# |n|^2$. The velocity is the paper's $p$.


# %%
def update(theta, velocity, n, learning_rate, momentum, C, nu_of_n):
    """theta, velocity, n (n,) -> (new theta, new velocity)."""
    ...


check("5.1", update)

# %% [markdown]
# **5.2** The weight of the old factors in a running average over `timescale` examples, if
# statistics are taken every `period` updates.


# %%
def decay(batch_size, period, timescale):
    """-> a number between 0 and 1."""
    ...


check("5.2", decay)

# %% [markdown]
# **5.3** When did a run reach a level? Errors go up and down.


# %%
def first_update(updates, errors, level):
    """updates (n,), errors (n,) -> the first update with an error of at most `level`, or inf."""
    ...


check("5.3", first_update)

# %% [markdown]
# **5.4** One element of the patch matrix, stride 1, padding K // 2. Row m*T + t is location t of
# image m. Column 0 is the one, column 1 + delta*J + j is map j at offset number delta.


# %%
def patch_element(x, row, column, K):
    """x (M, H, W, J) -> a number."""
    ...


check("5.4", patch_element)

# %% [markdown]
# **5.5** The first entry of $\mathbf{\Omega}$ that a thread has, if a thread has side x side
# entries in place of 4 x 4. `TILE` is a multiple of `side`.


# %%
def first_entry(thread, tile_row, tile_column, TILE, side):
    """-> (row, column) of Omega."""
    ...


check("5.5", first_entry)

# %% [markdown]
# ## What to remember
#
# - Tune each method. Compare updates and seconds.
# - Large mini-batches are where KFC pays most.
# - Records say what was run. A curve without its settings says nothing.
# - A kernel is index arithmetic and barriers, and it can be followed on a laptop.
# - Now read [one update, line by line](../walkthrough.md): all of it in one script.
