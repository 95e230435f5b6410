"""An update is the one of the papers, worked out on tables by hand; the target network moves when it is due.

With one-hot observations, one hidden layer that passes them on and a last layer without bias, the network is a table
`[S, A]`, and every value can be read off.
"""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from numpy.testing import assert_allclose, assert_array_equal

from rlplatform.agents import DQN
from rlplatform.config import Config
from rlplatform.experience import Batch

ONLINE = np.array([[1.0, 2.0, 3.0], [5.0, 4.0, 1.0], [0.0, 1.0, 0.5]], np.float32)
TARGET = np.array([[9.0, 8.0, 7.0], [2.0, 6.0, 10.0], [3.0, -1.0, 2.0]], np.float32)
STATES = np.eye(3, dtype=np.float32)


def tabular(online=ONLINE, target=TARGET, **agent):
    """A DQN whose networks are tables."""
    agent = {"target_update_interval": 1_000, "huber_delta": float("inf")} | agent
    config = Config().replace(network={"hidden_units": [3]}, agent=agent, optimizer={"max_gradient_norm": float("inf")})
    dqn = DQN(config, (3,), "float32", 3)
    for network, table in ((dqn.online, online), (dqn.target, target)):
        network.set_weights([STATES, np.zeros(3, np.float32), table, np.zeros(3, np.float32)])
    return dqn


def batch(
    states=(0, 0, 2),
    actions=(2, 0, 1),
    rewards=(1, 2, 3),
    discounts=(0.5, 0.5, 0),
    following=(1, 2, 1),
    weights=1,
    masks=None,
):
    return Batch(
        observation=tf.constant(STATES[list(states)]),
        action=tf.constant(actions, tf.int32),
        reward=tf.constant(rewards, tf.float32),
        discount=tf.constant(discounts, tf.float32),
        next_observation=tf.constant(STATES[list(following)]),
        weight=tf.constant(np.broadcast_to(weights, len(states)), tf.float32),
        action_mask=tf.constant(np.zeros((len(states), 0), np.bool_) if masks is None else masks[list(states)]),
        next_action_mask=tf.constant(np.zeros((len(states), 0), np.bool_) if masks is None else masks[list(following)]),
        slot=tf.range(len(states)),
    )


def update(dqn, items=None, rate=1e-3):
    return dqn.update(batch() if items is None else items, tf.constant(rate))


def table(network):
    return network.get_weights()[2]


def test_double_q_takes_the_online_networks_choice_at_the_target_networks_value():
    # In state 1 the online network likes action 0, which the target network values 2 (and likes 2 best, at 10);
    # in state 2 the online network likes action 1, which the target network values -1 (and likes 0 best, at 3).
    errors = update(tabular(double=True)).td_error
    assert_allclose(errors, [1 + 0.5 * 2 - 3, 2 + 0.5 * -1 - 1, 3 - 1], rtol=1e-6)


def test_plain_q_takes_the_target_networks_largest_value():
    errors = update(tabular(double=False)).td_error
    assert_allclose(errors, [1 + 0.5 * 10 - 3, 2 + 0.5 * 3 - 1, 3 - 1], rtol=1e-6)


def test_the_loss_is_the_weighted_mean_over_the_batch():
    errors = np.array([2 - 3, 1.5 - 1, 3 - 1])
    metrics = update(tabular(), batch(weights=[1, 0, 1]))
    assert_allclose(metrics.loss, (0.5 * errors[0] ** 2 + 0.5 * errors[2] ** 2) / 3, rtol=1e-6)
    assert_allclose(metrics.td_error, errors * [1, 0, 1], rtol=1e-6)
    assert_allclose(metrics.q, [3, 3, 1], rtol=1e-6)
    huber = update(tabular(huber_delta=1.0)).loss
    assert_allclose(huber, (0.5 + 0.125 + 1.5) / 3, rtol=1e-6)


def test_an_update_moves_only_the_value_of_the_action_taken_in_the_state_seen():
    dqn = tabular()
    update(dqn, batch(states=[0], actions=[2], rewards=[1], discounts=[0.5], following=[1]))
    assert_array_equal(table(dqn.online) != ONLINE, STATES[[0]].T * STATES[2] > 0)  # entry [0, 2] alone
    assert table(dqn.online)[0, 2] < ONLINE[0, 2]  # the target, 2, is below
    assert_array_equal(table(dqn.target), TARGET)


def test_a_dead_draw_moves_nothing():
    dqn = tabular()
    metrics = update(dqn, batch(weights=0))
    assert_array_equal(table(dqn.online), ONLINE)
    assert float(metrics.loss) == float(metrics.gradient_norm) == 0.0


def test_after_a_termination_what_follows_does_not_matter():
    one = update(tabular(), batch(discounts=[0, 0, 0], following=[0, 1, 2]))
    other = update(tabular(), batch(discounts=[0, 0, 0], following=[2, 0, 1]))
    assert_array_equal(one.td_error, other.td_error)


def test_the_learning_rate_is_the_one_given():
    small, large = tabular(), tabular()
    update(small, rate=1e-3)
    update(large, rate=1e-2)
    moved = [table(dqn.online) - ONLINE for dqn in (small, large)]
    assert_allclose(moved[1], 10 * moved[0], rtol=1e-3, atol=1e-6)
    assert np.abs(moved[0]).max() > 0.0


@pytest.mark.parametrize("interval", [1, 3])
def test_a_hard_target_is_copied_when_it_is_due_and_not_before(interval):
    dqn, last = tabular(target_update_interval=interval), TARGET
    for number in range(1, 8):
        update(dqn)
        if number % interval == 0:
            last = table(dqn.online)
        assert_array_equal(table(dqn.target), last, err_msg=f"after update {number}")
    assert int(dqn.updates) == 7


@pytest.mark.parametrize("interval", [1, 2])
def test_a_soft_target_follows_by_its_share(interval):
    dqn, slow = tabular(tau=0.25, target_update_interval=interval), TARGET.astype(np.float64)
    for number in range(1, 6):
        update(dqn, rate=0.1)
        if number % interval == 0:
            slow = 0.25 * table(dqn.online) + 0.75 * slow
        assert_allclose(table(dqn.target), slow, rtol=1e-5, err_msg=f"after update {number}")


def test_the_target_starts_as_a_copy():
    dqn = DQN(Config().replace(network={"hidden_units": [5]}), (3,), "float32", 2)
    for online, target in zip(dqn.online.get_weights(), dqn.target.get_weights(), strict=True):
        assert_array_equal(online, target)


def test_what_is_saved_goes_on_as_if_nothing_had_happened():
    dqn = tabular(target_update_interval=2)
    for _ in range(3):
        update(dqn)
    other = tabular(TARGET, ONLINE, target_update_interval=2)
    other.load_state(dqn.state())
    for _ in range(3):
        update(dqn)
        update(other)
    for name, value in dqn.state().items():
        assert_array_equal(other.state()[name], value, err_msg=name)
    assert len(dqn.state()) == 4 + 4 + 3 + 1  # two networks of four weights, Adam's three, the number of updates


# --- every head, with and without Munchausen, double and masks ------------------------------------------------------
#
# The network is still a table: of distributions `[S, A, K]`, or, for implicit quantiles, of slopes `[S, A]` that the
# embedding of a level in that state is multiplied by.

HEADS = ("scalar", "categorical", "quantile", "implicit_quantile")
K, LOW, HIGH = 5, -4.0, 4.0
ATOMS = [-4.0, -2.0, 0.0, 2.0, 4.0]
MASKS = np.array([[True, True, True], [False, True, True], [True, False, True]])
TEMPERATURE, SHARE, CLIP, DELTA = 0.5, 0.9, -1.0, 0.75


def with_head(head, **flags):
    """A DQN whose networks hold random tables, and the tables."""
    keys = {"noisy", "dueling"}
    config = Config().replace(
        network={"hidden_units": [3]} | {key: value for key, value in flags.items() if key in keys},
        agent={
            "head": head,
            "num_atoms": K,
            "num_quantiles": K,
            "v_min": LOW,
            "v_max": HIGH,
            "huber_delta": DELTA,
            "munchausen_temperature": TEMPERATURE,
            "munchausen_alpha": SHARE,
            "munchausen_clip": CLIP,
        }
        | {key: value for key, value in flags.items() if key not in keys},
        optimizer={"max_gradient_norm": float("inf")},
    )
    dqn, rng = DQN(config, (3,), "float32", 3), np.random.default_rng(4)
    for network in (dqn.online, dqn.target):
        network.set_weights([0.5 * rng.normal(size=weight.shape) for weight in network.weights])
        for name in ("value_dense_0", "advantage_dense_0") if config.network.dueling else ("dense_0",):
            network.get_layer(name).kernel.assign(STATES)
            network.get_layer(name).bias.assign(np.zeros(3))
    return dqn


def raw(network, head, state, tau):
    """[A, K] of a state: what the head's loss takes, worked out from the weights."""
    kernel, bias = (part.numpy().astype(np.float64) for part in [x for x in network.layers if x.weights][-1].weights)
    if head == "implicit_quantile":
        w, b = (part.numpy().astype(np.float64) for part in network.get_layer("quantiles").weights)
        embedding = [max(sum(np.cos(np.pi * i * t) * w[i, state] for i in range(64)) + b[state], 0.0) for t in tau]
        return np.array([[e * kernel[state, a] + bias[a] for e in embedding] for a in range(3)])
    return (kernel[state] + bias).reshape(3, -1)


def chances(logits):
    weights = np.exp(logits - max(logits))
    return weights / weights.sum()


def value(distribution, head):
    """The mean of one action's distribution."""
    return np.dot(chances(distribution), ATOMS) if head == "categorical" else sum(distribution) / len(distribution)


def soft(q, mask):
    """`(policy, temperature * log policy)` over the allowed actions, 0 elsewhere."""
    weights = [np.exp(v / TEMPERATURE) if m else 0.0 for v, m in zip(q, mask, strict=True)]
    policy = [weight / sum(weights) for weight in weights]
    return policy, [TEMPERATURE * np.log(p) if p > 0.0 else 0.0 for p in policy]


def projected(positions, probabilities):
    """Bellemare et al. 2017, algorithm 1."""
    result = np.zeros(K)
    for position, probability in zip(positions, probabilities, strict=True):
        b = (min(max(position, LOW), HIGH) - LOW) / 2.0
        lower, upper = int(np.floor(b)), int(np.ceil(b))
        result[lower] += probability * (upper - b if upper > lower else 1.0)
        result[upper] += probability * (b - lower)
    return result


def huber(error):
    return 0.5 * error**2 if abs(error) <= DELTA else DELTA * (abs(error) - 0.5 * DELTA)


def expected_losses(dqn, head, items, taus, double, munchausen, masks):
    """The loss of each item, in loops."""
    losses = []
    for index in range(len(items.reward)):
        s, sp = (int(part[index].numpy().argmax()) for part in (items.observation, items.next_observation))
        a, reward, discount = (float(part[index]) for part in (items.action, items.reward, items.discount))
        a, allowed_here, allowed_there = int(a), MASKS[s] if masks else [True] * 3, MASKS[sp] if masks else [True] * 3
        following = raw(dqn.target, head, sp, taus[1])  # [A, K]
        chooser = raw(dqn.online, head, sp, taus[0]) if double else following
        q = [value(part, head) for part in chooser]
        policy, bonus = [0.0] * 3, [0.0] * 3
        if munchausen:
            here = [value(part, head) for part in raw(dqn.target, head, s, taus[1])]
            reward += SHARE * max(soft(here, allowed_here)[1][a], CLIP)
            policy, scaled = soft(q, allowed_there)
            bonus = [-part for part in scaled]
        else:
            policy[max((b for b in range(3) if allowed_there[b]), key=lambda b: q[b])] = 1.0
        predicted = raw(dqn.online, head, s, taus[0])[a]
        if head == "categorical":
            target = np.zeros(K)
            for b in range(3):
                positions = [reward + discount * (z + bonus[b]) for z in ATOMS]
                target += policy[b] * projected(positions, chances(following[b]))
            losses.append(-np.dot(target, np.log(chances(predicted))))
            continue
        targets = [
            reward + discount * sum(policy[b] * (following[b][k] + bonus[b]) for b in range(3))
            for k in range(len(predicted))
        ]
        if head == "scalar":
            losses.append(huber(targets[0] - predicted[0]))
            continue
        loss = 0.0
        for i, t in enumerate(taus[0]):
            for j in range(K):
                error = targets[j] - predicted[i]
                loss += abs(t - (error < 0.0)) * huber(error) / DELTA / K
        losses.append(loss)
    return losses


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("double", "munchausen", "masks"), list(itertools.product([False, True], repeat=3)))
def test_the_loss_of_every_combination_is_that_of_loops(head, double, munchausen, masks):
    dqn = with_head(head, double=double, munchausen=munchausen)
    items = batch(
        states=(0, 1, 2, 0, 1),
        actions=(2, 1, 0, 0, 2),
        rewards=(1, -0.5, 0.3, 0, 2),
        discounts=(0.9, 0.729, 0, 0.9, 0.81),
        following=(1, 2, 0, 2, 1),
        weights=(1, 0.5, 0.25, 0, 1),
        masks=MASKS if masks else None,
    )
    taus = [[(i + 0.5) / K for i in range(K)]] * 2
    if head == "implicit_quantile":
        taus = [dqn._levels(stream).numpy().astype(np.float64) for stream in range(2)]
        assert not np.array_equal(*taus)  # the target's levels are its own
    expected = np.array(expected_losses(dqn, head, items, taus, double, munchausen, masks))
    loss = update(dqn, items, 0.0).loss
    assert_allclose(loss, np.mean(expected * [1, 0.5, 0.25, 0, 1]), rtol=1e-3, atol=1e-5)


def gradients_of(dqn, items, monkeypatch):
    """The gradient of every weight, of one update with the same noise and levels each time; nothing moves."""
    taken = []
    with monkeypatch.context() as patch:
        patch.setattr(dqn.optimizer, "apply", lambda gradients, *_: taken.extend(gradients) or tf.constant(0.0))
        dqn.updates.assign(3)
        metrics = update(dqn, items)
    return metrics, [part.numpy().astype(np.float64) for part in taken]


@pytest.mark.parametrize("head", HEADS)
def test_weights_are_exact_under_every_loss(head, monkeypatch):
    """The gradient is the mean of the items' own gradients, each times its weight."""
    dqn, weights = with_head(head, noisy=True, munchausen=True), (1, 0.5, 0.25)
    _, together = gradients_of(dqn, batch(discounts=(0.9, 0.9, 0.5), weights=weights), monkeypatch)
    total = [np.zeros(part.shape) for part in together]
    states, actions, rewards, discounts, following = (0, 0, 2), (2, 0, 1), (1, 2, 3), (0.9, 0.9, 0.5), (1, 2, 1)
    for index, weight in enumerate(weights):
        item = [[part[index]] for part in (states, actions, rewards, discounts, following)]
        _, alone = gradients_of(dqn, batch(*item), monkeypatch)
        total = [so_far + weight * part / 3 for so_far, part in zip(total, alone, strict=True)]
    for got, expected in zip(together, total, strict=True):
        assert_allclose(got, expected, rtol=1e-3, atol=1e-5)
    assert max(np.abs(part).max() for part in together) > 1e-3


@pytest.mark.parametrize("head", HEADS)
def test_metrics_are_those_of_the_items_whatever_they_weigh(head, monkeypatch):
    dqn = with_head(head)
    full, _ = gradients_of(dqn, batch(), monkeypatch)
    weighted, _ = gradients_of(dqn, batch(weights=(0.5, 0, 0.1)), monkeypatch)
    assert_allclose(weighted.td_error, full.td_error * [1, 0, 1], rtol=1e-5)
    assert_array_equal(weighted.priority, full.priority)
    assert np.all(full.priority >= 0.0)
    assert np.all(full.priority.numpy() > 0.0)


@pytest.mark.parametrize("head", HEADS)
def test_the_target_network_gets_no_gradient_and_stays(head):
    dqn = with_head(head, noisy=True, munchausen=True, dueling=True)
    before = dqn.target.get_weights()
    at_first = dqn.online.get_weights()
    for _ in range(3):
        update(dqn, rate=1e-2)
    for weight, expected in zip(dqn.target.get_weights(), before, strict=True):
        assert_array_equal(weight, expected)
    moved = [np.abs(w - at).max() for w, at in zip(dqn.online.get_weights(), at_first, strict=True)]
    assert min(moved) > 0.0  # every weight of the online network, sigmas too


def test_an_update_has_noise_and_levels_of_its_own_that_follow_from_the_seed():
    def losses(head, seed=0):
        dqn = with_head(head, noisy=True)
        dqn._seed = seed
        return [float(update(dqn, rate=0.0).loss) for _ in range(4)]

    for head in ("scalar", "implicit_quantile"):
        first = losses(head)
        assert len(set(first)) == 4
        assert losses(head) == first
        assert not set(losses(head, 1)) & set(first)


def test_both_networks_have_noise_of_their_own():
    dqn = with_head("scalar", noisy=True)
    dqn.target.set_weights(dqn.online.get_weights())
    x = tf.constant(STATES)
    online, target = (dqn._output(network, x, None, noise) for noise, network in enumerate((dqn.online, dqn.target)))
    assert np.abs(online - target).min() > 0.0
    assert_array_equal(dqn._output(dqn.target, x, None, 0), online)
    mean = dqn.policy_network()(x)  # which has none
    assert np.abs(mean - online).min() > 0.0
    assert_array_equal(mean, dqn.online(x))


def test_streams_of_random_numbers_never_meet():
    dqn, seeds = with_head("implicit_quantile"), []
    for count in (0, 1, 2, 2**28 - 1):
        dqn.updates.assign(count)
        seeds += [tuple(dqn._stream(index).numpy()) for index in range(4)]
    assert len(set(seeds)) == 16
    assert all(second < -1 for _, second in seeds)  # draws of the replay count up from 0, and -1 is for looking


@pytest.mark.parametrize(("torso", "shape", "has"), [("mlp", (40, 40, 1), False), ("nature", (40, 40, 1), True)])
def test_it_knows_whether_it_convolves(torso, shape, has):
    assert DQN(Config().replace(network={"torso": torso}), shape, "uint8", 2).has_convolutions == has
