"""The optimizers: each step against the published update written out, and their invariances."""

import copy
import math

import numpy as np
import pytest
from checks import assert_close
from networks import CONFIGS, EVERY_LAYER, INPUT_SHAPE, batches, network, optimizer, settings

from kfcnet import philox
from kfcnet.batches import Batch
from kfcnet.config.schema import HessianFreeConfig, KfacConfig
from kfcnet.curvature import damped_inverses, derivative_factor, input_factor
from kfcnet.curvature.inversion import InversionWarning
from kfcnet.layers import Layer, ReLU
from kfcnet.losses import SoftmaxCrossEntropy, SquaredError
from kfcnet.network import Network, build_network
from kfcnet.ops.cpu import CpuOps
from kfcnet.optimizers import build_optimizer
from kfcnet.ranks import is_of_all


def loss_gradient(opt, batch, step):
    """The gradient of the mean loss with step's dropout masks, without weight decay."""
    z = opt.network.forward(batch.inputs, training=True, step=step)
    opt.network.backward(opt.loss.evaluate(z, batch.targets)[1])
    opt.network.compute_gradient()
    return opt.network.gradient.copy()


@pytest.mark.parametrize("name", ["sgd", "adagrad", "rmsprop", "adam", "kfc_pre"])
def test_nothing_moves_from_the_first_loss_that_is_not_finite_on(ops64, rng, name):
    opt, data = optimizer(ops64, name), batches(ops64, rng, 4)
    opt.prepare(data)
    data[1].inputs[0] = np.nan
    opt.step(data[0])
    before = {key: opt.state()[key] for key in ("theta", "velocity", "average")}
    for batch in data[1:3]:
        with pytest.raises(
            FloatingPointError, match="loss of update 2 is not finite; the parameters are as"
        ):
            opt.step(batch)
    reading = opt.running_sums.read()
    assert reading.nonfinite_step == 1 and np.isnan(reading.losses)
    for key, array in before.items():
        np.testing.assert_array_equal(getattr(opt, key, opt.network.theta), array)


ALL = [*CONFIGS, "kfac", "hessian_free"]


def any_optimizer(ops, name):
    if name in CONFIGS:
        return optimizer(ops, name)
    config = {"kfac": KfacConfig, "hessian_free": HessianFreeConfig}[name]()
    return build_optimizer(config, network(ops), SoftmaxCrossEntropy(ops, 3))


@pytest.mark.parametrize("name", ALL)
def test_every_optimizer_refuses_all_steps_after_a_loss_that_is_not_finite(ops64, rng, name):
    opt = any_optimizer(ops64, name)
    data = batches(ops64, rng, 6)
    opt.prepare(data[:1])
    data[2].inputs[0, 0, 0, 0] = np.nan
    opt.step(data[1])
    before = {key: opt.state()[key] for key in ("theta", "velocity", "average")}
    for batch in data[2:]:
        with pytest.raises(FloatingPointError, match="loss of update 2 is not finite") as raised:
            opt.step(batch)
        assert is_of_all(raised.value)
    for key, array in before.items():
        assert np.isfinite(array).all()
        np.testing.assert_array_equal(opt.state()[key], array)


def test_a_reading_is_what_the_steps_since_the_latest_restart_add_up_to(ops64, rng):
    opt, data = optimizer(ops64, "kfc_pre", clip=1e-3), batches(ops64, rng, 5)
    opt.prepare(data[:1])
    for part in (data[:2], data[2:]):
        opt.running_sums.restart()
        steps = [opt.step(batch) for batch in part]
        totals = np.sum([step.totals for step in steps], axis=0)
        clipped = sum(step.clip_scale[0] < 1 for step in steps)
        reading = opt.running_sums.read()
        assert_close(reading[:2], totals)
        assert (reading.clipped, reading.nonfinite_step) == (clipped, None) and clipped > 0


def test_sums_go_on_over_readings_and_from_what_a_restart_gives(ops64, rng):
    opt, data = optimizer(ops64, "kfc_pre", clip=1e-9), batches(ops64, rng, 5)
    opt.prepare(data[:1])
    nus = [1e-9 / opt.step(batch).clip_scale[0] ** 2 for batch in data[:2]]  # each is clipped
    assert_close(opt.running_sums.read().nu, sum(nus), 1e-9)
    step = opt.step(data[2])
    nus += [1e-9 / step.clip_scale[0] ** 2]
    reading = opt.running_sums.read()
    assert_close(reading.nu, sum(nus), 1e-9)
    assert reading.clipped == 3 and reading.losses > step.totals[0]
    opt.running_sums.restart(5, 0.25)
    step = opt.step(data[3])
    reading = opt.running_sums.read()
    assert_close(reading.nu, 0.25 + 1e-9 / step.clip_scale[0] ** 2, 1e-9)
    assert_close(reading[:2], step.totals)
    assert reading.clipped == 6


@pytest.mark.parametrize("name, changes", [("sgd", {}), ("kfc_pre", {"clip": None})])
def test_what_does_not_clip_has_no_nu(ops64, rng, name, changes):
    opt, data = optimizer(ops64, name, **changes), batches(ops64, rng, 2)
    opt.prepare(data[:1])
    opt.step(data[1])
    assert np.isnan(opt.running_sums.read().nu)


def test_sgd_is_the_published_update(ops64, rng):
    decay = {"conv2": 0.3, "dense2": 0.7}
    opt = optimizer(ops64, "sgd", weight_decay=decay)
    theta, velocity = opt.network.theta.copy(), 0.0
    average = theta.copy()
    lambdas = np.zeros_like(theta)
    for layer, view in zip(opt.network.weighted, opt.network.views(lambdas), strict=True):
        view[:, 1:] = decay.get(layer.name, 0.0)  # biases are never decayed
    for step, batch in enumerate(batches(ops64, rng, 4)):
        with opt.network.using(theta):
            gradient = loss_gradient(opt, batch, step) + lambdas * theta
        velocity = 0.9 * velocity - 0.1 * gradient
        theta = theta + velocity
        xi = math.exp(-8 / 100)
        average = xi * average + (1 - xi) * theta
        opt.step(batch)
        assert_close(opt.network.theta, theta)
        assert_close(opt.average, average)
    assert (opt.steps, opt.examples) == (4, 32)


def test_nesterov_takes_the_gradient_where_momentum_is_about_to_lead(ops64, rng):
    """Sutskever et al. (2013): what is kept is the point ahead, theta + momentum*velocity."""
    opt = optimizer(ops64, "sgd", nesterov=True)
    ahead = opt.network.theta.copy()
    behind, velocity = ahead.copy(), 0.0
    average = ahead.copy()
    for step, batch in enumerate(batches(ops64, rng, 4)):
        with opt.network.using(behind + 0.9 * velocity):
            gradient = loss_gradient(opt, batch, step)
        velocity = 0.9 * velocity - 0.1 * gradient
        behind = behind + velocity
        ahead = behind + 0.9 * velocity
        average = math.exp(-8 / 100) * average + (1 - math.exp(-8 / 100)) * ahead
        opt.step(batch)
        assert_close(opt.network.theta, ahead)
        assert_close(opt.average, average)


def published_step(name, theta, g, decay, state, step, decoupled):
    """One step of a method as published, with a penalty's gradient or decay beside it: theta."""
    mu, rho, epsilon, rate = 0.8, 0.95, 1e-3, 0.1
    if not decoupled:
        g = g + decay * theta
    beside = rate * decay * theta if decoupled else 0
    if name == "nesterov":
        state["v"] = mu * state["v"] - rate * g
        return theta + mu * state["v"] - rate * g
    if name == "adagrad":
        state["s"] = state["s"] + g**2
        return theta - rate * g / (np.sqrt(state["s"]) + epsilon) - beside
    state["s"] = rho * state["s"] + (1 - rho) * g**2
    if name == "rmsprop":
        return theta - rate * g / (np.sqrt(state["s"]) + epsilon) - beside
    state["v"] = mu * state["v"] + (1 - mu) * g
    mean, square = state["v"] / (1 - mu**step), state["s"] / (1 - rho**step)
    return theta - rate * mean / (np.sqrt(square) + epsilon) - beside


@pytest.mark.parametrize("weight_decay", [0.0, {"conv2": 0.3, "dense2": 0.7}])
@pytest.mark.parametrize(
    "name, decoupled",
    [
        ("nesterov", False),
        ("adagrad", False),
        ("rmsprop", False),
        ("rmsprop", True),
        ("adam", False),
        ("adam", True),
    ],
)
def test_a_method_takes_its_settings_as_published(ops64, rng, name, decoupled, weight_decay):
    """Every setting unlike its default and unlike the others; weights of some layers decay."""
    own = {"nesterov": True} if name == "nesterov" else {"square_decay": 0.95, "epsilon": 1e-3}
    own |= {"decoupled_decay": True} if decoupled else {}
    kind = "sgd" if name == "nesterov" else name
    opt = optimizer(ops64, kind, EVERY_LAYER[1:], momentum=0.8, weight_decay=weight_decay, **own)
    theta, state = opt.network.theta.copy(), {"v": 0.0, "s": 0.0}
    average, xi = theta.copy(), math.exp(-8 / 100)
    for step, batch in enumerate(batches(ops64, rng, 5)):
        with opt.network.using(theta):
            gradient = loss_gradient(opt, batch, step)
        theta = published_step(name, theta, gradient, opt.decay_vector, state, step + 1, decoupled)
        average = xi * average + (1 - xi) * theta
        opt.step(batch)
        assert_close(opt.network.theta, theta, 1e-11)
        assert_close(opt.average, average, 1e-11)
    assert bool(opt.decay_vector.any()) == bool(weight_decay)


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("adagrad", dict(lr=0.1, eps=1e-8)),
        ("rmsprop", dict(lr=0.1, alpha=0.9, eps=1e-8)),
        ("adam", dict(lr=0.1, betas=(0.8, 0.9), eps=1e-8)),
        ("sgd", dict(lr=0.1, momentum=0.9)),
        ("sgd", dict(lr=0.1, momentum=0.9, nesterov=True)),
    ],
)
def test_baselines_follow_pytorch_step_by_step(ops64, rng, name, arguments):
    torch = pytest.importorskip("torch", reason="PyTorch, the reference, is not installed")
    own = {"nesterov": True} if "nesterov" in arguments else {}
    own |= {"momentum": 0.8} if name == "adam" else {}  # unlike square_decay
    opt = optimizer(ops64, name, layers=EVERY_LAYER[1:], **own)
    theta = torch.tensor(opt.network.theta.copy(), requires_grad=True)
    makers = dict(
        adagrad=torch.optim.Adagrad,
        rmsprop=torch.optim.RMSprop,
        adam=torch.optim.Adam,
        sgd=torch.optim.SGD,
    )
    reference = makers[name]([theta], **arguments)
    average, xi = opt.network.theta.copy(), math.exp(-8 / 100)
    for step, batch in enumerate(batches(ops64, rng, 5)):
        with opt.network.using(theta.detach().numpy()):
            theta.grad = torch.tensor(loss_gradient(opt, batch, step))
        reference.step()
        average = xi * average + (1 - xi) * theta.detach().numpy()
        opt.step(batch)
        assert_close(opt.network.theta, theta.detach().numpy(), 1e-9)
        assert_close(opt.average, average, 1e-9)


def test_adam_with_decoupled_decay_is_pytorchs_adamw(ops64, rng):
    torch = pytest.importorskip("torch", reason="PyTorch, the reference, is not installed")
    opt = optimizer(
        ops64, "adam", layers=EVERY_LAYER[1:], weight_decay=0.3, decoupled_decay=True, momentum=0.8
    )
    # Biases do not decay, here as everywhere; AdamW decays whatever it is given.
    free = opt.decay_vector == 0
    theta = opt.network.theta.copy()
    parts = [torch.tensor(theta[free], requires_grad=True), torch.tensor(theta[~free])]
    parts[1].requires_grad = True
    groups = [dict(params=parts[:1], weight_decay=0.0), dict(params=parts[1:], weight_decay=0.3)]
    reference = torch.optim.AdamW(groups, lr=0.1, betas=(0.8, 0.9), eps=1e-8)
    for step, batch in enumerate(batches(ops64, rng, 4)):
        with opt.network.using(theta):
            gradient = loss_gradient(opt, batch, step)
        for part, mask in zip(parts, (free, ~free), strict=True):
            part.grad = torch.tensor(gradient[mask])
        reference.step()
        theta[free], theta[~free] = (part.detach().numpy() for part in parts)
        opt.step(batch)
        assert_close(opt.network.theta, theta, 1e-9)


def test_kfc_pre_is_the_algorithm_box_written_out(ops64, rng):
    """Four steps with T_s = 2, T_f = 4, weight decay, dropout and an active clip, in NumPy."""
    opt = optimizer(ops64, "kfc_pre", weight_decay=0.05, learning_rate=3.0, clip=0.01)
    net, loss, config = opt.network, opt.loss, opt.config
    first, *rest = batches(ops64, rng, 5)
    opt.prepare([first])
    factors = [(block.Omega.copy(), block.Gamma.copy()) for block in opt.blocks]
    inverses = [damped_inverses(*pair, 0.05 + config.damping) for pair in factors]
    theta, velocity, clipped, nus = net.theta.copy(), 0.0, 0, 0.0
    for step, batch in enumerate(rest):
        with net.using(theta):
            gradient = loss_gradient(opt, batch, step) + opt.decay_vector * theta
            p = loss.evaluate(net.forward(batch.inputs, training=True, step=step), batch.targets)[0]
            if step % 2:
                net.backward(loss.sampled_gradient(p[:4], step))
                xi = math.exp(-16 / 100)
                fresh = [
                    (
                        input_factor(layer.inputs[:4], *layer.window),
                        derivative_factor(layer.derivatives),
                    )
                    for layer in net.weighted
                ]
                factors = [
                    tuple(xi * old + (1 - xi) * new for old, new in zip(*pairs, strict=True))
                    for pairs in zip(factors, fresh, strict=True)
                ]
            if step == 3:
                inverses = [damped_inverses(*pair, 0.05 + config.damping) for pair in factors]
            natural = np.concatenate(
                [
                    (Gamma_inv @ g @ Omega_inv).ravel()
                    for (Omega_inv, Gamma_inv), g in zip(inverses, net.views(gradient), strict=True)
                ]
            )
            v = -3.0 * natural
            r = net.tangent(v, 2)
            fisher = (
                sum(a @ (np.diag(q) - np.outer(q, q)) @ a for q, a in zip(p[:2], r, strict=True))
                / 2
            )
        nu = fisher + v @ (opt.decay_vector * v)
        nus += nu
        if nu > 0.01:
            v, clipped = v / math.sqrt(nu / 0.01), clipped + 1
        velocity = 0.9 * velocity + v
        theta = theta + velocity
        opt.step(batch)
        assert_close(net.theta, theta, 1e-8)
    assert clipped > 0
    assert_close(opt.running_sums.read().nu, nus, 1e-8)
    for block, (Omega, Gamma) in zip(opt.blocks, factors, strict=True):
        assert_close(block.Omega, Omega, 1e-8)
        assert_close(block.Gamma, Gamma, 1e-8)


def test_the_clip_brings_nu_to_exactly_its_cap(ops64, rng):
    opt = optimizer(
        ops64,
        "kfc_pre",
        momentum=0.0,
        learning_rate=100.0,
        clip_fraction=1.0,
        weight_decay=0.01,
        layers=EVERY_LAYER[1:],
    )
    prepare, batch = batches(ops64, rng, 2)
    opt.prepare([prepare])
    before = opt.network.theta.copy()
    scale = opt.step(batch).clip_scale
    v = opt.network.theta - before
    with opt.network.using(before):
        p = opt.loss.evaluate(opt.network.forward(batch.inputs), batch.targets)[0]
        r = opt.network.tangent(v, 8)
        quadratic = opt.loss.fisher_form(p, r, r, scale=1 / 8)
    assert scale[0] < 1
    assert_close(quadratic + v @ (opt.decay_vector * v), [0.3], 1e-9)


def test_the_clip_does_not_see_what_is_wrong_with_certainty(ops64):
    """A property of the published nu: curvature vanishes, the gradient does not."""
    opt = optimizer(ops64, "kfc_pre", layers=[dict(layer="dense", units=2)], learning_rate=1.0)
    opt.network.views(opt.network.theta)[0][...] = 0
    opt.network.views(opt.network.theta)[0][0, 0] = 100
    batch = Batch(np.zeros((4, *INPUT_SHAPE)), np.ones(4, np.int32))
    opt.prepare([batch])
    assert opt.step(batch).clip_scale == 1
    assert_close(opt.velocity[0], -1 / 1e-3, 1e-9)  # gradient / damping


def test_damping_auto_sees_what_is_wrong_with_certainty(ops64):
    """The same: the damping bounds a step by three gradients, and by four h of ten such steps."""
    layers = [dict(layer="dense", units=2)]
    opt = optimizer(ops64, "kfc_pre", layers=layers, learning_rate=1.0, damping="auto")
    opt.network.views(opt.network.theta)[0][...] = 0
    opt.network.views(opt.network.theta)[0][0, 0] = h = 14
    batch = Batch(np.zeros((4, *INPUT_SHAPE)), np.ones(4, np.int32))
    opt.prepare([batch])
    scale = opt.step(batch).clip_scale
    n = 3 * np.array([1.0, -1.0])  # gradient / damping, of the two biases
    assert_close(scale, [0.4 * h / (n[0] - n[1])], 1e-4)
    assert_close(opt.velocity[0], -scale[0] * n[0], 1e-4)


@pytest.mark.parametrize("clip", [None, 0.3])
def test_no_step_of_damping_auto_promises_more_than_the_objective(ops64, rng, clip):
    opt = optimizer(
        ops64, "kfc_pre", learning_rate=0.3, damping="auto", clip=clip, weight_decay=0.02
    )
    opt.network.theta *= 9  # certain of what is wrong
    data = batches(ops64, rng, 8)
    opt.prepare(data[:1])
    bounded = 0
    for batch in data[1:]:
        theta = opt.network.theta.copy()
        step = opt.step(batch)
        h = opt.objective(step.totals, theta, batch.size)
        promised = step.clip_scale[0] * 0.3 * (opt.network.gradient @ opt.direction)
        assert 0 < promised <= 0.4 * h * (1 + 1e-9)
        bounded += promised > 0.4 * h * (1 - 1e-9)
    assert bounded > 0


def test_damping_auto_is_the_papers_where_the_bound_is_slack(ops64, rng):
    data, thetas = batches(ops64, rng, 6), []
    for damping in ("auto", 1e-3, 2e-3):
        opt = optimizer(ops64, "kfc_pre", learning_rate=1e-3, damping=damping)
        opt.prepare(data[:1])
        for batch in data[1:]:
            opt.step(batch)
        thetas.append(opt.network.theta)
    assert np.array_equal(thetas[0], thetas[1]) and not np.array_equal(thetas[1], thetas[2])
    auto = (optimizer(ops64, "kfc_pre", learning_rate=rate, damping="auto") for rate in (0.003, 3))
    assert [opt.factor_damping for opt in auto] == [1e-3, 1.0]


def test_delayed_inverses_are_adopted_at_exactly_their_step(ops64, rng):
    """Begun at step 3 (T_f = 4), adopted two steps later: steps 3 and 4 still use the first."""
    opt = optimizer(ops64, "kfc_pre", inverse_delay=2)
    data = batches(ops64, rng, 7)
    opt.prepare(data[:1])
    first, seen, begun_from = opt.blocks[0].Omega_inv.copy(), [], None
    for batch in data[1:]:
        opt.step(batch)
        seen.append(np.array_equal(opt.blocks[0].Omega_inv, first))
        if opt.steps == 4:
            begun_from = [opt.blocks[0].Omega.copy(), opt.blocks[0].Gamma.copy()]
    assert seen == [True] * 5 + [False]
    expected = damped_inverses(*begun_from, opt.config.damping)
    assert_close(opt.blocks[0].Omega_inv, expected[0])
    assert_close(opt.blocks[0].Gamma_inv, expected[1])


@pytest.mark.parametrize("stop", [3, 4, 5, 6])
def test_an_inversion_under_way_is_resumed_bit_for_bit(rng, stop):
    ops = CpuOps("float32", shards=2)
    data = batches(ops, rng, 9)
    straight, stopped, resumed = (optimizer(ops, "kfc_pre", inverse_delay=2) for _ in range(3))
    for opt, last in ((straight, 9), (stopped, stop)):
        opt.prepare(data[:1])
        for batch in data[1:last]:
            opt.step(batch)
    resumed.load_state(stopped.state())
    for batch in data[stop:]:
        resumed.step(batch)
    assert np.array_equal(straight.network.theta, resumed.network.theta)


def test_a_delayed_inversion_that_fails_keeps_the_last_good_inverses(ops64, rng):
    opt = optimizer(ops64, "kfc_pre", inverse_delay=1)
    data = batches(ops64, rng, 6)
    opt.prepare(data[:1])
    good = opt.blocks[0].Omega_inv.copy()
    for batch in data[1:4]:
        opt.step(batch)
    opt.blocks[0].Omega[...] = np.nan
    with pytest.warns(InversionWarning, match="conv1"):
        for batch in data[4:]:
            opt.step(batch)
    assert np.array_equal(opt.blocks[0].Omega_inv, good)


def test_without_a_clip_the_update_is_the_plain_natural_gradient(ops64, rng):
    opt = optimizer(ops64, "kfc_pre", clip=None, learning_rate=0.01, momentum=0.0)
    prepare, batch = batches(ops64, rng, 2)
    opt.prepare([prepare])
    before = opt.network.theta.copy()
    assert opt.step(batch).clip_scale is None
    assert_close(opt.network.theta - before, -0.01 * opt.direction, 1e-9)


def test_a_step_before_the_preparation_is_refused(ops64, rng):
    """Its inverses would be zero, and so would every update; afterwards all is as if it had not
    been tried."""
    first, second = batches(ops64, rng, 2)
    states = []
    for tries in (0, 1):
        opt = optimizer(ops64, "kfc_pre", statistics_period=1)
        for _ in range(tries):
            with pytest.raises(RuntimeError, match=r"call prepare\(batches\)"):
                opt.step(first)
        opt.prepare([first])
        opt.step(second)
        states.append(opt.state())
    assert np.abs(states[0]["velocity"]).max() > 0
    np.testing.assert_equal(states[1], states[0])


@pytest.mark.parametrize("name", ALL)
def test_a_good_state_is_gone_on_with_after_a_loss_that_is_not_finite(ops64, rng, name):
    data, ends = batches(ops64, rng, 4), []
    for is_spoiled in (False, True):
        opt = any_optimizer(ops64, name)
        opt.prepare(data[:1])
        opt.step(data[1])
        if is_spoiled:
            good = opt.state()
            with pytest.raises(FloatingPointError):
                opt.step(Batch(np.full_like(data[2].inputs, np.nan), data[2].targets))
            opt.load_state(good)
        for batch in data[2:]:
            opt.step(batch)
        ends.append(opt.state())
    np.testing.assert_equal(ends[1], ends[0])


@pytest.mark.parametrize(
    "name, changes",
    [
        ("kfc_pre", {}),
        ("kfc_pre", {"tikhonov": "exact"}),
        ("kfc_pre", {"structure": "ekfac"}),
        ("kfac", {}),
        ("hessian_free", {}),
    ],
)
def test_a_state_from_before_the_preparation_asks_for_it(ops64, rng, name, changes):
    def new():
        return optimizer(ops64, name, **changes) if changes else any_optimizer(ops64, name)

    first, second = batches(ops64, rng, 2)
    ends = []
    for detour in (False, True):
        opt = new()
        if detour:
            opt.prepare([second])
            opt.load_state(new().state())
            with pytest.raises(RuntimeError, match=r"call prepare\(batches\)"):
                opt.step(first)
        opt.prepare([first])
        opt.step(second)
        ends.append(opt.network.theta.copy())
    assert np.array_equal(*ends)


def test_a_step_that_raises_leaves_the_running_average_of_the_factors_alone(ops64, rng):
    first, second, third = batches(ops64, rng, 3)
    states = []
    for is_wrong in (False, True):
        opt = optimizer(ops64, "kfc_pre", statistics_period=1, statistics_timescale=10.0)
        opt.prepare([first])
        if is_wrong:
            with pytest.raises(ValueError, match="the label of example 0 is 99"):
                opt.step(Batch(second.inputs, np.full_like(second.targets, 99)))
        for batch in (third, Batch(second.inputs[:4], second.targets[:4])):
            opt.step(batch)
        states.append(opt.state())
    np.testing.assert_equal(states[1], states[0])


def test_a_learning_rate_that_is_assigned_is_refused(ops64):
    opt = optimizer(ops64, "sgd")
    with pytest.raises(AttributeError, match="learning_rate follows config.schedule"):
        opt.learning_rate = 0.0
    assert opt.learning_rate == 0.1


@pytest.mark.parametrize("name", ALL)
def test_what_is_no_mini_batch_is_refused_in_a_line(ops64, rng, name):
    opt = any_optimizer(ops64, name)
    (batch,) = batches(ops64, rng, 1)
    if opt.needs_preparation:
        with pytest.raises(TypeError, match="prepare: expected a list of batches, got one Batch"):
            opt.prepare(batch)
    opt.prepare([batch])
    with pytest.raises(TypeError, match=r"expected a kfcnet.batches.Batch\(.*got a tuple"):
        opt.step((batch.inputs, batch.targets))


def test_the_state_of_another_network_or_method_changes_nothing(ops64, rng):
    opt = optimizer(ops64, "kfc_pre")
    before = opt.network.theta.copy()
    smaller = optimizer(ops64, "kfc_pre", layers=EVERY_LAYER[-1:])
    with pytest.raises(ValueError, match="of a network with .* parameters; this one has"):
        opt.load_state(smaller.state())
    with pytest.raises(KeyError, match="factors_at"):
        opt.load_state(optimizer(ops64, "sgd", seed=9).state())
    assert np.array_equal(opt.network.theta, before) and opt.steps == 0


def test_a_timescale_that_is_left_to_the_data_is_refused(ops64):
    with pytest.raises(ValueError, match="optimizer.averaging_timescale: auto is for"):
        optimizer(ops64, "sgd", averaging_timescale="auto")


def test_prepare_without_a_batch_raises(ops64):
    """The factors would be zero, and inverses of the damping alone taken for an estimate."""
    opt = optimizer(ops64, "kfc_pre")
    with pytest.raises(ValueError, match="batches: none given; the factors need at least one"):
        opt.prepare(iter([]))
    assert opt.needs_preparation


def test_preparation_averages_over_all_of_its_batches(ops64, rng):
    """Batches of unequal size count by their examples: the estimate is that of their union."""
    opt = optimizer(ops64, "kfc_pre", layers=EVERY_LAYER[1:])
    parts = batches(ops64, rng, 1, M=3) + batches(ops64, rng, 1, M=9)
    opt.prepare(parts)
    inputs = np.concatenate([part.inputs for part in parts])
    assert_close(opt.blocks[0].Omega, input_factor(inputs, 3, 1, 1))


def test_every_estimate_of_the_factors_draws_targets_of_its_own(ops64, rng, monkeypatch):
    """Those of the preparation are none of a step's, of which there are fewer than 2^62."""
    opt = optimizer(ops64, "kfc_pre", statistics_period=1)
    drawn, draw = [], ops64.uniforms

    def noted(count, seed, purpose, step, *rest):
        drawn.append((purpose, int(np.ravel(step)[0])))  # a counter may go on
        return draw(count, seed, purpose, step, *rest)

    monkeypatch.setattr(ops64, "uniforms", noted)
    data = batches(ops64, rng, 6)
    opt.prepare(data[:3])
    for batch in data[3:]:
        opt.step(batch)
    steps = [step for purpose, step in drawn if purpose == philox.TARGETS]
    assert steps[3:] == [0, 1, 2]
    assert len(set(steps[:3])) == 3 and min(steps[:3]) > 2**62


def test_statistics_never_depend_on_the_labels(ops64, rng):
    first, second = (optimizer(ops64, "kfc_pre", learning_rate=0.0) for _ in range(2))
    data = batches(ops64, rng, 4)
    for opt, shift in ((first, 0), (second, 1)):
        shifted = [Batch(b.inputs, ((b.targets + shift) % 3).astype(np.int32)) for b in data]
        opt.prepare(shifted[:1])
        for batch in shifted[1:]:
            opt.step(batch)
    for a, b in zip(first.blocks, second.blocks, strict=True):
        assert np.array_equal(a.Omega, b.Omega) and np.array_equal(a.Gamma, b.Gamma)


def test_identical_batches_give_the_batch_factor_back(ops64, rng):
    """No trace of an initial identity, and no decay that drifts."""
    layers = [dict(layer="conv", filters=3, kernel=2, std=0.5), dict(layer="dense", units=3)]
    opt = optimizer(ops64, "kfc_pre", layers, learning_rate=0.0, statistics_fraction=1.0)
    (batch,) = batches(ops64, rng, 1)
    opt.prepare([batch])
    expected = input_factor(batch.inputs, 2)
    for _ in range(6):
        opt.step(batch)
    assert_close(opt.blocks[0].Omega, expected, 1e-12)


@pytest.mark.parametrize("name", ["sgd", "kfc_pre", "adagrad", "rmsprop", "adam"])
def test_a_restored_optimizer_goes_on_bit_for_bit(name, rng):
    ops = CpuOps("float32", shards=2)
    data = batches(ops, rng, 7)
    straight, stopped, resumed = (optimizer(ops, name, seed=s) for s in (3, 3, 4))
    resumed.loss.seed = 3
    for layer in resumed.network.layers:
        if hasattr(layer, "seed"):
            layer.seed = 3
    for opt in (straight, stopped):
        opt.prepare(data[:1])
        for batch in data[1:4]:
            opt.step(batch)
    resumed.load_state(stopped.state())
    assert not resumed.needs_preparation
    for batch in data[4:]:
        straight.step(batch)
        resumed.step(batch)
    assert np.array_equal(straight.network.theta, resumed.network.theta)
    assert np.array_equal(straight.average, resumed.average)


def test_the_same_seed_gives_the_same_bits_on_any_number_of_runs(rng):
    ops = CpuOps("float32", shards=3)
    data = batches(ops, rng, 4)
    runs = [optimizer(ops, "kfc_pre") for _ in range(2)]
    for opt in runs:
        opt.prepare(data[:1])
        for batch in data[1:]:
            opt.step(batch)
    assert np.array_equal(runs[0].network.theta, runs[1].network.theta)


def test_weight_decay_for_an_unknown_layer_is_refused(ops64):
    with pytest.raises(ValueError, match="conv9"):
        optimizer(ops64, "sgd", weight_decay={"conv9": 0.1})


@pytest.mark.parametrize("shift", [0.0, 1.5], ids=["linear", "affine, no padding"])
def test_kfc_updates_are_invariant_to_affine_maps_of_the_activations(ops64, rng, shift):
    """Theorem 3 for one layer between a transformed input and a transformed pre-activation."""
    padding = 0 if shift else 1
    M, J, I, K = 200, 2, 3, 3
    a = rng.standard_normal((M, 5, 4, J))
    V, d = rng.standard_normal((J, J)), shift * rng.standard_normal(J)
    U = rng.standard_normal((I, I))
    Jm = np.zeros((1 + K * K * J,) * 2)  # [[A+]]_H = [[A]]_H Jm, offset-major columns
    Jm[0, 0], Jm[0, 1:] = 1, np.tile(d, K * K)
    Jm[1:, 1:] = np.kron(np.eye(K * K), V)

    layers = [dict(layer="conv", filters=I, kernel=K, padding=padding, std=0.3)]
    plain, mapped = (build_network(layers, (5, 4, J), ops64) for _ in range(2))
    U_inv, Jm_inv = np.linalg.inv(U), np.linalg.inv(Jm)
    # s = U s+ at every location: the function behind is told about U through its derivative.
    mapped.theta[...] = (U_inv @ plain.weighted[0].weight @ Jm_inv.T).ravel()
    loss = SquaredError(ops64)
    steps = []
    for net, x, to_output in ((plain, a, np.eye(I)), (mapped, a @ V + d, U)):
        z = net.forward(x) @ to_output.T
        target = np.sin(np.arange(z.size)).reshape(z.shape)
        net.backward((z - target) @ to_output)
        net.compute_gradient()
        sampled = loss.sampled_gradient(z, 0) @ to_output
        Omega, Gamma = input_factor(x, K, 1, padding), derivative_factor(sampled)
        steps.append(np.linalg.solve(Gamma, net.views(net.gradient)[0]) @ np.linalg.inv(Omega))
    assert_close(U @ steps[1] @ Jm.T, steps[0], 1e-9)


class Mix(Layer):
    """x -> x V + d at every location: another parameterisation of what comes before and after."""

    def __init__(self, ops, input_shape, name, V, d):
        super().__init__(ops, input_shape, name)
        self.V, self.d = V, d

    def forward(self, x, mode):
        return x @ self.V + self.d

    def backward(self, dy):
        return dy @ self.V.T

    def tangent(self, rx):
        return rx @ self.V


def two_parameterisations(ops, rng):
    """A network, and one whose layers speak through affine maps; both are the same function."""

    def near_identity(n):
        return np.eye(n) + 0.4 * rng.standard_normal((n, n))

    plain = network(
        ops,
        [
            dict(layer="conv", filters=3, kernel=3, padding=1, std=0.5),
            dict(layer="relu"),
            dict(layer="conv", filters=2, kernel=2, std=0.5),
            dict(layer="relu"),
            dict(layer="dense", units=2, std=0.5),
        ],
        (4, 3, 2),
    )
    layers, weights = [], []
    V, d = np.eye(2), np.zeros(2)  # of the activations below: the images are left as they are
    for layer, Wbar in zip(plain.layers[::2], plain.views(plain.theta), strict=True):
        last = layer is plain.layers[-1]
        U = np.eye(2) if last else near_identity(layer.weight_shape[0])
        c = 0 * U[0] if last else rng.standard_normal(len(U))
        places = (Wbar.shape[1] - 1) // len(V)  # kernel offsets; pixels of a dense layer's input
        Jm = np.eye(Wbar.shape[1])  # [[A+]]_H = [[A]]_H Jm
        Jm[0, 1:], Jm[1:, 1:] = np.tile(d, places), np.kron(np.eye(places), V)
        shifted = Wbar.copy()
        shifted[:, 0] -= c
        weights.append((np.linalg.inv(U).T @ shifted @ np.linalg.inv(Jm).T).ravel())
        layers.append(copy.copy(layer))
        layers[-1].applies_relu = False
        if not last:
            V, d = near_identity(len(U)), rng.standard_normal(len(U))
            layers += [
                Mix(ops, layer.output_shape, f"{layer.name}_U", U, c),
                ReLU(ops, layer.output_shape, f"{layer.name}_relu"),
                Mix(ops, layer.output_shape, f"{layer.name}_V", V, d),
            ]
    mapped = Network(layers, ops)
    mapped.theta[...] = np.concatenate(weights)
    return plain, mapped


@pytest.mark.parametrize("name, invariant", [("kfc_pre", True), ("sgd", False)])
def test_kfc_pre_trains_the_same_function_in_another_parameterisation(ops64, rng, name, invariant):
    """Theorem 3 for the whole algorithm, momentum, clip and averaging too: without damping, and
    with Gaussian outputs, whose Gamma is regular. SGD, the control, depends on the parameters.
    """
    networks = two_parameterisations(ops64, rng)
    config = settings(
        name,
        damping=0.0,
        learning_rate=0.3 if invariant else 1e-3,
        clip=0.02,
        statistics_fraction=1.0,
        inverse_period=2,
    )
    data = [
        Batch(rng.standard_normal((80, 4, 3, 2)), rng.standard_normal((80, 2))) for _ in range(6)
    ]
    scales, outputs = [], []
    for net in networks:
        opt = build_optimizer(config, net, SquaredError(ops64, seed=1))
        start = net.forward(data[0].inputs)
        opt.prepare(data[:2])
        scales.append([opt.step(batch).clip_scale for batch in data[2:]])
        moved = [net.forward(data[0].inputs)]
        with net.using(opt.average):
            moved.append(net.forward(data[0].inputs))
        outputs.append((start, *moved))
    change = np.abs(outputs[0][1] - outputs[0][0]).max()
    at_start, *later = (np.abs(b - a).max() / change for a, b in zip(*outputs, strict=True))
    assert at_start < 1e-12
    assert max(later) < 1e-8 if invariant else min(later) > 0.05
    if invariant:
        assert min(scale[0] for scale in scales[0]) < 1
        assert_close(scales[1], scales[0], 1e-8)


def test_zero_padding_breaks_the_invariance_to_a_shift_of_the_activations(rng):
    """The trap: what lies outside the image is the image of 0, d, and not 0."""
    a, d = rng.standard_normal((200, 5, 4, 2)), np.array([1.0, -2.0])
    Jm = np.eye(19)
    Jm[0, 1:] = np.tile(d, 9)
    mapped = input_factor(a + d, 3, 1, 1)
    expected = Jm.T @ input_factor(a, 3, 1, 1) @ Jm
    assert np.abs(mapped - expected).max() > 0.1 * np.abs(expected).max()
    outside = np.pad(a + d, ((0, 0), (1, 1), (1, 1), (0, 0)))
    outside[:, [0, -1]] = outside[:, :, [0, -1]] = d
    assert_close(input_factor(outside, 3), expected, 1e-12)
