"""The steps that transfer saves, with figures worked out by hand."""

import pytest

from rlplatform.analysis import savings, savings_table
from rlplatform.analysis.savings import first_reached

PAIR = {"from": "Pole", "to": "Heavy", "changes": [], "transfer_changes": [], "freeze": None, "fine_tune": 0}


def tree(scratch, transfer, seeds=None, failed=()):
    """A file with these steps for seeds 0, 1, ..., or for those named for transfer."""
    runs = [PAIR | {"arm": "scratch", "seed": seed, "steps": steps} for seed, steps in enumerate(scratch)]
    about = {"arm": "transfer", "source_steps": 500, "frozen_layers": 2}
    for seed, steps in zip(range(len(transfer)) if seeds is None else seeds, transfer, strict=True):
        runs.append(PAIR | about | {"seed": seed, "steps": steps})
    return {"configurations": [PAIR | {"threshold": 475.0, "budget": 1_000}], "runs": runs, "failed": list(failed)}


def test_the_ratio_is_that_of_means_with_every_run_that_never_got_there_at_the_budget():
    (row,) = savings(tree([800, None, 600, 1_008], [100, 200, None, 300]))
    assert row.scratch == (800 + 1_000 + 600 + 1_000) / 4  # a block may go over the budget
    assert row.transfer == (100 + 200 + 1_000 + 300) / 4
    assert row.reached == (3, 3)
    assert row.ratio.estimate == row.transfer / row.scratch
    assert row.ratio.low < row.ratio.estimate < row.ratio.high
    assert (row.threshold, row.budget, row.source_steps, row.frozen) == (475.0, 1_000, 500, 2)


def test_seeds_are_resampled_as_pairs():
    """Where transfer takes half the steps on every seed, no resampling changes the ratio."""
    (row,) = savings(tree([800, 200, 600, 1_000, 400], [400, 100, 300, 500, 200]))
    assert (row.ratio.low, row.ratio.estimate, row.ratio.high) == (0.5, 0.5, 0.5)


def test_a_seed_counts_only_with_both_runs_and_other_pairs_apart():
    both = tree([800, 600, 900], [400, 300], seeds=[1, 5])
    both["runs"].append(PAIR | {"freeze": 0, "arm": "scratch", "seed": 1, "steps": 10})
    (row,) = savings(both)
    assert (row.seeds, row.scratch, row.transfer) == (1, 600.0, 400.0)
    assert savings(tree([800], [], seeds=[])) == []


@pytest.mark.parametrize(("threshold", "step"), [(5.0, 10), (7.0, 30), (9.5, None)])
def test_the_first_evaluation_that_reaches_the_threshold_counts(threshold, step):
    assert first_reached([(10, 5.0), (20, 4.0), (30, 9.0), (40, 8.0)], threshold) == step
    assert first_reached([], threshold) is None


def test_the_table_says_how_many_runs_have_got_there_and_markdown_has_a_cell_for_each():
    failed = [PAIR | {"arm": "scratch", "seed": 7, "error": "training has diverged"}]
    made = tree([800, None, 600], [100, 200, 300], failed=failed)
    lines = savings_table(made).splitlines()
    assert lines[1].startswith("Pole  Heavy")
    assert "800 (2 of 3 within 1,000)" in lines[1]
    assert "  200  0.25 [" in lines[1]
    assert lines[-1] == "failed: Heavy scratch seed 7: training has diverged"
    cells = [line.count("|") for line in savings_table(made, markdown=True).splitlines() if line.startswith("|")]
    assert cells == [10] * 3
    assert "[" not in savings_table(tree([800, 600], [100, 200])).splitlines()[1].replace("[95 %]", "")
    assert savings_table(tree([], [])) == "no seed has both runs yet"
