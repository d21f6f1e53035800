"""How long a step of the CIFAR-10 network would take on an H100, from what was counted.

No GPU has been asked: this is a model, good to 30% at best, whose use is to tell before a
measurement what to expect, and after it where the model is wrong. A launch takes

    GAP + max(SHORTEST, bytes / rate, instructions / issue, mma / tensor) / filled

bytes: of its arrays, each once (compiled_counts.py); the rate is the L2's where they fit into half
of it. instructions: of the main loop, its arithmetic over the share that arithmetic has of the
issue slots, and what is pooled beside it. filled: the part of a multiprocessor's rates that its
warps can use, all from ENOUGH_WARPS on. A step takes as long as its longest chain of launches,
where each waits for the one before; but no less than what all of them would take one after the
other if each filled the device.
`python tests/predicted_times.py > tests/predicted_times.csv` writes the table anew.
"""

import csv
import math
import sys
from pathlib import Path

import numpy as np
import recorded_steps
from compiled_counts import Specialised, megabytes, table

from kfcnet.ops.cuda.gram import triangle
from kfcnet.ops.cuda.launcher import MULTIPROCESSORS
from kfcnet.ops.shapes import ceil_div

TABLE = Path(__file__).with_name("predicted_times.csv")
GAP = 1.3  # us between two launches of a graph that wait for one another
SHORTEST = 1.5  # us that a launch takes at least
CLOCK = 1755.0  # MHz: cycles a us
MEMORY, L2, HALF_OF_L2 = 3.0, 5.5, 25.0  # MB a us, MB a us, MB
SCHEDULERS = 4 * MULTIPROCESSORS  # each issues an instruction of 32 lanes a cycle
MMA_CYCLES = 6.4  # of a scheduler for an m16n8k8 of TF32 by mma.sync: 62% of the peak rate
ENOUGH_WARPS = 16  # of a multiprocessor, to hide what each waits for
STEPS = {
    "SGD, batch 128": ("cifar_sgd", 128),
    "KFC-pre, batch 512": ("cifar_kfc", 512, None, False),
    "with statistics": ("cifar_kfc", 512, 0.5, False),
    "with statistics and inverses": ("cifar_kfc", 512, 0.5, True),
}
PERIOD = 5  # of statistics and of inverses, as configs/cifar_kfc.yaml has them


def multiply_adds(launch):
    """Of the arithmetic for which a launch is there; 0 where memory alone limits it."""
    c, numbers = dict(launch.constants), [v for v in launch.values if np.ndim(v) == 0]
    if launch.kernel.startswith("conv_forward"):
        outputs = launch.values[2].size
        return outputs * c["KERNEL_SIZE"] ** 2 * c["IN_MAPS"]
    if launch.kernel.startswith("conv_max_pool"):  # with the positions that tiles make twice
        outputs = math.prod(launch.grid) * math.prod(launch.block) * c["TILE_MAPS"]
        return outputs * c["KERNEL_SIZE"] ** 2 * c["IN_MAPS"]
    if launch.kernel.startswith(("conv_backward_weights_tf32", "conv_backward_weights_register")):
        outputs = len(launch.values[0]) * c["OUT_HEIGHT"] * c["OUT_WIDTH"] * c["OUT_MAPS"]
        return outputs * c["KERNEL_SIZE"] ** 2 * c["IN_MAPS"]
    if launch.kernel.startswith("matmul"):
        return math.prod(map(int, numbers[:3]))
    if launch.kernel == "gram_offsets_slices":
        K = c["KERNEL_SIZE"]
        return launch.values[0].size * (2 * K * (K - 1) + 1) * c["IN_MAPS"]
    if launch.kernel == "gram_patches_slices":
        M, P = int(numbers[0]), 1 + c["KERNEL_SIZE"] ** 2 * c["IN_MAPS"]
        return M * c["OUT_HEIGHT"] * c["OUT_WIDTH"] * P * (P + c["TILE"]) // 2
    if launch.kernel == "gram_rows_slices":
        return launch.values[0].size * (c["MAPS"] + 32) // 2
    if launch.kernel == "spd_sweep":
        sides = [int(side) for side in str(c["SIDES"]).split(",")]
        sweeps = [ceil_div(side, 32) for side in sides]
        tiles = [triangle(ceil_div(side, 64)) for side in sides]  # of 64 x 64
        of_tile = 64 * 64 * 32 + 64 * 32 * 32 + 32**3  # U D U^T, U D, and D itself
        return of_tile * int(np.dot(tiles, sweeps)) // max(sweeps)  # of a launch, on average
    return 0


def pooled(launch):
    """Rounds of the loop in which a convolution pools, or spreads its windows' derivatives."""
    c = dict(launch.constants)
    if launch.kernel == "conv_max_pool":
        return launch.values[2].size // 4
    if launch.kernel == "conv_max_pool_tangent":
        return launch.values[3].size
    if c.get("POOL_SIZE") and launch.kernel == "conv_backward_weights_tf32":
        outputs = len(launch.values[0]) * c["OUT_HEIGHT"] * c["OUT_WIDTH"] * c["OUT_MAPS"]
        return outputs // (4 * c["POOL_STRIDE"] ** 2)
    return 0


def work(launch, cells):
    """(microseconds of a launch if it filled the device, how much of it it fills).

    cells: its line of the table of counts.
    """
    warps = -(-int(np.prod(launch.block)) // 32)
    blocks = int(np.prod(launch.grid))
    together = min(blocks / MULTIPROCESSORS, float(cells["blocks_a_multiprocessor"]))
    filled = min(1.0, together * warps / ENOUGH_WARPS)
    moved = megabytes(launch)
    times = [moved / (L2 if moved <= HALF_OF_L2 else MEMORY)]
    if products := multiply_adds(launch):
        is_tensor = int(cells["HMMA"]) > 0
        arithmetic = products / (1024 if is_tensor else 32)
        issued = arithmetic / float(cells["share"])
        if rounds := pooled(launch):
            issued += rounds / 32 * float(cells["windows"])
        times.append(issued / SCHEDULERS / CLOCK)
        if is_tensor:
            times.append(arithmetic * MMA_CYCLES / SCHEDULERS / CLOCK)
    return max(times), filled


def microseconds(launch, cells):
    """Of a launch, GAP included."""
    time, filled = work(launch, cells)
    return GAP + max(SHORTEST, time / filled)


def of_step(recorder):
    """Of what was recorded of a step."""
    counted = table()

    def cells(launch):
        return counted[Specialised(*launch[:3], {}).name]

    chain = recorder.branches(lambda launch: microseconds(launch, cells(launch))).depth
    return max(chain, sum(work(launch, cells(launch))[0] for launch in recorder.launches))


def average(plain, statistics, inverses):
    """Of KFC-pre's steps, from the times of the three kinds of them."""
    return plain + (statistics - plain) / PERIOD + (inverses - statistics) / PERIOD


def predictions():
    """[{column: text}] of STEPS, and of what KFC-pre's steps take on average."""
    rows, times = [], []
    for step, arguments in STEPS.items():
        recorder = recorded_steps.record(*arguments)
        times.append(of_step(recorder))
        launches, chain = len(recorder.launches), recorder.branches().depth
        rows.append({"step": step, "launches": launches, "chain": chain, "us": f"{times[-1]:.0f}"})
    us = f"{average(*times[1:]):.0f}"
    rows.append({"step": "KFC-pre, on average", "launches": "", "chain": "", "us": us})
    return rows


def main():
    rows = predictions()
    writer = csv.DictWriter(sys.stdout, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


if __name__ == "__main__":
    main()
