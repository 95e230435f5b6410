"""Tables of returns, with figures worked out by hand."""

import numpy as np
import pytest

from rlplatform.analysis import aggregates, as_table, rows


def run(env, preset, seed, best, last, steps=1_000):
    return {
        "env": env,
        "preset": preset,
        "seed": seed,
        "steps": steps,
        "best_returns": best,
        "last_returns": last,
    }


def tree(runs, environments=(), failed=()):
    return {"runs": runs, "environments": dict(environments), "failed": list(failed)}


@pytest.fixture
def two_by_two():
    """Two presets on two environments; scores of `a`: 10 20 30 40 and 100 on Pole, 1 2 3 4 on Hill."""
    runs = [run("Pole", "a", seed, [10 * (seed + 1), 10 * (seed + 1)], [0, 10]) for seed in range(4)]
    runs.append(run("Pole", "a", 4, [99, 101], [0, 10], steps=1_008))
    runs += [run("Hill", "a", seed, [seed + 1], [1]) for seed in range(4)]
    runs += [run(env, "b", seed, [50], [50]) for env in ("Pole", "Hill") for seed in range(4)]
    return tree(
        runs, {"Pole": {"goal": 40.0, "random": 0.0, "random_returns": [20] * 9}, "Hill": {"goal": 3.0, "random": 1.0}}
    )


def test_a_row_counts_runs_and_takes_each_runs_mean_as_its_score(two_by_two):
    first, second, third, fourth = rows(two_by_two)
    assert [(row.env, row.preset) for row in (first, second, third, fourth)] == [
        ("Pole", "a"),
        ("Pole", "b"),
        ("Hill", "a"),
        ("Hill", "b"),
    ]
    assert first.seeds == 5
    assert first.steps == 1_008
    assert first.best.estimate == pytest.approx((20 + 30 + 40) / 3)  # 5 // 4 = 1 left out at each end
    assert (first.mean, first.worst) == (40.0, 10.0)
    assert (first.goal, first.at_goal) == (40.0, 2)
    assert first.last.estimate == first.last.low == first.last.high == 5.0
    assert first.best.low >= 10.0
    assert first.best.high <= 100.0
    assert third.at_goal == 2


def test_the_aggregate_is_scaled_by_random_actions_and_the_goal(two_by_two):
    a, b = aggregates(two_by_two)
    scores = sorted([0.25, 0.5, 0.75, 1.0, 2.5, 0.0, 0.5, 1.0, 1.5])
    assert (a.preset, a.environments) == ("a", 2)
    assert a.best.estimate == pytest.approx(np.mean(scores[2:-2]))
    assert b.best.estimate == pytest.approx(np.mean([1.25] * 2 + [24.5] * 2))


def test_environments_that_a_preset_lacks_or_without_a_goal_are_not_aggregated(two_by_two):
    lacking = two_by_two | {"runs": [run for run in two_by_two["runs"] if (run["env"], run["preset"]) != ("Hill", "b")]}
    assert aggregates(lacking) == []
    goalless = two_by_two | {"environments": {"Pole": two_by_two["environments"]["Pole"], "Hill": {"goal": None}}}
    assert aggregates(goalless) == []
    assert next(row for row in rows(goalless) if row.env == "Hill").at_goal is None


def test_the_table_lines_up_and_markdown_has_a_cell_for_each(two_by_two):
    two_by_two["failed"] = [{"env": "Pole", "preset": "c", "seed": 7, "error": "training has diverged"}]
    lines = as_table(two_by_two).splitlines()
    assert lines[0].split()[:4] == ["environment", "preset", "steps", "seeds"]
    assert lines[1].startswith("Pole")
    assert "30.0 [" in lines[1]
    assert "2 of 5 (≥ 40)" in lines[1]
    assert lines[1].split("  ")[-1].strip() == "20.0 [20.0, 20.0]"  # random actions
    assert "5.00 [5.00, 5.00]" in lines[1]
    assert "over the 2 environments with a goal" in lines[5]
    assert lines[-1] == "failed: Pole c seed 7: training has diverged"
    cells = [line.count("|") for line in as_table(two_by_two, markdown=True).splitlines() if line.startswith("|")]
    assert cells == [11] * 6 + [4] * 4


def test_two_seeds_have_no_interval_and_no_runs_no_table():
    table = as_table(tree([run("Pole", "a", seed, [seed], [seed]) for seed in range(2)]))
    assert "[" not in table.splitlines()[1]
    assert as_table(tree([])) == "no run has finished"
