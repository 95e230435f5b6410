import numpy as np
import pytest

from rlplatform.analysis import compare, mean
from rlplatform.compression import agreement, gates, inspection
from rlplatform.compression.runtimes import spread

RNG = np.random.default_rng(0)
NETWORK_Q = 100.0 + RNG.normal(0, 1, (200, 3))
GOLDEN_Q = agreement.centred(NETWORK_Q)
ACTIONS = NETWORK_Q.argmax(axis=1)


def failed(found):
    return {gate.name for gate in found if not gate.passed}


def test_the_algebra_gate_ignores_an_offset_and_sees_a_changed_value():
    assert gates.algebra(NETWORK_Q, GOLDEN_Q, ACTIONS, True).passed
    changed = GOLDEN_Q.copy()
    changed[7, 1] += 0.02  # 2e-4 of the largest value
    assert not gates.algebra(NETWORK_Q, changed, ACTIONS, True).passed
    assert not gates.algebra(NETWORK_Q, GOLDEN_Q, ACTIONS, False).passed


def test_the_algebra_gate_sees_a_changed_action():
    other = ACTIONS.copy()
    other[3] = (other[3] + 1) % 3
    gate = gates.algebra(NETWORK_Q, GOLDEN_Q, other, True)
    assert not gate.passed
    assert "its actions in 1 of 200 states" in gate.sentence


def test_the_algebra_gate_compares_allowed_actions():
    masks = np.random.default_rng(1).random((200, 3)) < 0.7
    masks[np.arange(200), np.arange(200) % 3] = True
    allowed = np.where(masks, NETWORK_Q, -np.inf).argmax(axis=1)
    assert gates.algebra(NETWORK_Q, GOLDEN_Q, allowed, True, masks).passed
    assert not gates.algebra(NETWORK_Q, GOLDEN_Q, ACTIONS, True, masks).passed
    assert gates.converter("f", NETWORK_Q, GOLDEN_Q, GOLDEN_Q, allowed, masks).passed
    assert not gates.converter("f", NETWORK_Q, GOLDEN_Q, GOLDEN_Q, ACTIONS, masks).passed


def test_the_converter_gate_allows_rounding_and_nothing_more():
    rounding = GOLDEN_Q + RNG.normal(0, 1e-5, GOLDEN_Q.shape)  # of values of 100
    assert gates.converter("f", NETWORK_Q, GOLDEN_Q, rounding, GOLDEN_Q.argmax(axis=1)).passed
    assert not gates.converter("f", NETWORK_Q, GOLDEN_Q, GOLDEN_Q * 1.01, GOLDEN_Q.argmax(axis=1)).passed
    assert not gates.converter("f", NETWORK_Q, GOLDEN_Q, GOLDEN_Q, np.zeros(200, int)).passed


@pytest.mark.parametrize(
    ("foreign", "islands", "passed"), [((), (), True), (("FlexErf",), (), False), ((), ("MEAN",), False)]
)
def test_the_operator_gate_refuses_foreign_operators_and_float_islands(foreign, islands, passed):
    contents = inspection.Contents(("FULLY_CONNECTED",), foreign, islands, {}, bool(islands), 0.0, (-np.inf, np.inf))
    gate = gates.operators("f", contents)
    assert gate.passed is passed
    assert all(name in gate.sentence for name in foreign + islands)


def quantised(file_q, q=GOLDEN_Q, step=0.01):
    ends = (file_q.min(), file_q.max())
    return failed(gates.quantised("f", "golden", agreement.measure(q, file_q, step, ends)))


def test_the_int8_gates_allow_noise_below_a_step():
    assert quantised(np.round(GOLDEN_Q / 0.01) * 0.01) == set()


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (lambda q: q[:, [1, 2, 0]], {"agreement", "scale"}),  # columns shuffled
        (lambda q: q * [1.0, -1.0, 1.0], {"agreement", "scale"}),  # one column's sign flipped
        (lambda q: q[RNG.permutation(200)], {"agreement", "scale"}),  # another network
        (lambda q: q * 10.0, {"scale"}),
        (lambda q: q * 0.1, {"scale"}),
        (lambda q: np.minimum(q, 0.0), {"agreement", "saturation", "scale"}),  # the range ends at zero
    ],
)
def test_each_way_of_breaking_a_policy_fails_a_gate_by_name(broken, expected):
    assert quantised(broken(GOLDEN_Q)) == expected


def test_without_a_clear_state_the_int8_gates_leave_the_verdict_to_the_returns():
    found = gates.quantised("f", "visited", agreement.measure(GOLDEN_Q, -GOLDEN_Q, 100.0))
    assert failed(found) == set()
    assert {gate.sentence for gate in found} == {"no visited state has a gap of more than 2 int8 steps"}


def test_the_margin_is_a_share_of_what_is_gained_over_random_actions():
    assert gates.margin(np.full(8, 500.0), np.full(8, 20.0)) == pytest.approx(24.0)
    assert gates.margin(np.full(8, -80.0), np.full(8, -500.0)) == pytest.approx(21.0)  # negative returns


def test_for_a_network_that_gains_nothing_the_margin_is_a_share_of_its_spread():
    assert gates.margin(np.full(8, -200.0), np.full(8, -200.0)) == 0.0
    assert gates.margin(np.array([-10.0, 10.0] * 4), np.full(8, 50.0)) == pytest.approx(0.5)


def play(candidate, reference, margin):
    candidate, reference = np.asarray(candidate, float), np.asarray(reference, float)
    return gates.returns("f", compare(candidate, reference, margin), compare(candidate, reference, margin, mean))


def test_equal_returns_pass_even_without_a_margin():
    assert failed(play([-200.0] * 10, [-200.0] * 10, 0.0)) == set()


def test_a_loss_in_the_middle_half_fails_the_return_gate():
    assert failed(play([400.0] * 50, [500.0] * 50, 24.0)) == {"return", "mean return"}


def test_a_tenth_of_failed_episodes_fails_the_mean_alone():
    assert failed(play([500.0] * 90 + [10.0] * 10, [500.0] * 100, 24.0)) == {"mean return"}


def test_where_the_episodes_are_too_few_the_sentence_asks_for_more():
    found = play([60.0, -60.0] * 5, [0.0] * 10, 5.0)
    assert failed(found) == {"return"}
    assert found[0].sentence.endswith("more episodes would tell")


def test_another_runtime_must_give_the_same_values_and_clear_actions():
    given = np.array([[0.0, 10.0], [5.0, 4.9], [1.0, 2.0]])
    assert gates.runtimes("f", "C", given, given + 5e-5, 0.0).passed
    assert not gates.runtimes("f", "C", given, given + 5e-4, 0.0).passed
    step = 0.1
    assert gates.runtimes(
        "f", "C", given, given + np.array([0.2, -0.2]), step
    ).passed  # two steps, and no clear action changes
    apart = gates.runtimes("f", "C", given, given + np.array([0.204, 0.0]), step)
    assert not apart.passed
    assert apart.sentence == "values by C differ by 2.04 int8 steps (at most 2), and 0 of 2 clear actions"
    swapped = given[:, ::-1]
    assert "2 of 2 clear actions" in gates.runtimes("f", "C", given, swapped, step).sentence
    masks = np.array([[True, False], [True, True], [True, True]])
    assert "1 of 2 clear actions" in gates.runtimes("f", "C", given, swapped, step, masks).sentence


def test_values_exactly_two_steps_apart_pass_wherever_float32_puts_them():
    """Dequantised values are rounded to float32: two steps may come out as a little more than twice the step."""
    rng = np.random.default_rng(0)
    for step in rng.uniform(0.001, 2.0, 200).astype(np.float32):
        quantised = rng.integers(-128, 126, (64, 2))
        given, other = (np.float32(step) * (q + 7).astype(np.float32) for q in (quantised, quantised + 2))
        assert gates.runtimes("f", "reference", given, other, float(step)).passed
        assert not gates.runtimes("f", "reference", given, other + np.float32(0.1 * step), float(step)).passed


def test_runtimes_are_compared_on_easy_states_as_much_as_on_hard_ones():
    chosen = spread(1_000, 500)  # golden states: the 500 with the smallest gaps come first
    assert len(set(chosen)) == 500
    assert abs((chosen < 500).sum() - 250) <= 1
    assert list(spread(3, 500)) == [0, 1, 2]
