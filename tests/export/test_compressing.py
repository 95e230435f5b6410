"""From a run to the smallest bundle that plays as well, or to the best one within a budget."""

import numpy as np
import pytest
from known import cartpole_run

from rlplatform import compression
from rlplatform.compression import search, students
from rlplatform.errors import UserError
from rlplatform.export import compress, compressing, read, verify
from rlplatform.runtime import Policy


@pytest.fixture
def fewer_states(monkeypatch):
    """Enough for a pole, in a tenth of the time."""
    monkeypatch.setattr(search, "STATES", 5_000)
    monkeypatch.setattr(search, "ROUND_STATES", 2_000)
    monkeypatch.setattr(search, "TRIED_IN_BUDGET", 1)


@pytest.mark.slow
def test_the_smallest_policy_that_plays_as_well_is_found_and_verified(tmp_path, fewer_states):
    run = cartpole_run(tmp_path / "run")
    said = []
    verification = compress(
        run, tmp_path / "small", "auto", target="mcu", episodes=6, log_dir=tmp_path / "log", progress=said.append
    )
    assert verification.passed
    manifest = read(tmp_path / "small")
    report = manifest["compression"]
    sizes = [students.parameters(students.parse(each["architecture"]), (4,), 2) for each in report["candidates"]]
    chosen = students.parameters(students.parse(report["architecture"]), (4,), 2)
    assert [each["parameters"] for each in report["candidates"]] == sizes
    assert manifest["network"]["canonical_parameters"] == chosen
    assert chosen == min(size for size, each in zip(sizes, report["candidates"], strict=True) if each["passed"])
    assert manifest["files"]["policy_int8.tflite"]["bytes"] < 1_300
    assert any(words.startswith("distilling") for words in said)
    assert list((tmp_path / "log").rglob("events.*"))
    page = (tmp_path / "small" / "report.html").read_text()
    assert page.count("<circle") == len(sizes)
    assert all(f"<td>{each['architecture']}<td>" in page for each in report["candidates"])
    again = verify(tmp_path / "small", episodes=4)  # from the bundle alone
    assert again.passed
    assert [row.interquartile_mean.estimate for row in again.rows] == [500.0] * 3
    shown = again.rows[-1].visited.overall
    assert 0.5 < shown < 1.0, "the agreement that is shown is the one with the network that was trained"
    policy = Policy(tmp_path / "small")
    assert policy.act([0.0, 0.0, 0.2, 1.0]) == 1


@pytest.mark.slow
def test_a_budget_is_kept_and_what_does_not_fit_is_refused(tmp_path, fewer_states):
    run = cartpole_run(tmp_path / "run")
    verification = compress(run, tmp_path / "small", "1.5kB", episodes=4)
    assert verification.passed
    assert min(row.bytes for row in verification.rows[1:]) <= 1_500
    with pytest.raises(UserError, match=r"no policy fits into 500 bytes: the smallest here takes about [67]\d\d"):
        compress(run, tmp_path / "none", 500, episodes=4)
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_a_student_whose_files_are_larger_than_foreseen_makes_room_for_a_smaller_one(
    tmp_path, fewer_states, monkeypatch
):
    """The first rung is foreseen to have less than 800 bytes, and has about 1,000."""
    run = cartpole_run(tmp_path / "run")
    foreseen = compressing.predicted_bytes
    monkeypatch.setattr(compressing, "predicted_bytes", lambda *about: foreseen(*about) - 200)
    monkeypatch.setattr(compression, "best_of", lambda distillery, ladder: distillery.try_out(ladder[0]))
    verification = compress(run, tmp_path / "small", 800, target="mcu", episodes=4)
    assert verification.passed
    assert min(row.bytes for row in verification.rows[1:]) <= 800
    report = read(tmp_path / "small")["compression"]
    assert [each["architecture"] for each in report["candidates"]][-1] == report["architecture"] == "linear"
    assert len(report["candidates"]) > 1


@pytest.mark.parametrize(
    ("text", "target", "bytes"),
    [
        ("linear", "mcu", 720),
        ("16", "mcu", 1_232),
        ("16-16", "mcu", 1_776),
        ("64-64", "mcu", 6_576),
        ("linear", "cpu", 816),
        ("16", "cpu", 1_712),
        ("16-16", "cpu", 2_128),
        ("64-64", "cpu", 9_616),
    ],
)
def test_sizes_are_foreseen_within_a_third(text, target, bytes):
    """Files that the converter has made of networks from 8 features to 4 actions."""
    foreseen = compressing.predicted_bytes(students.parse(text), (8,), 4, target)
    assert abs(np.log(foreseen / bytes)) < np.log(1.3)


def test_a_budget_that_is_none_is_refused_before_anything_is_done(tmp_path):
    run = cartpole_run(tmp_path / "run")
    with pytest.raises(UserError, match="a budget is a size like 4kB"):
        compress(run, tmp_path / "small", "tiny")


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_network_is_pruned_and_clustered_as_asked_for(tmp_path, fewer_states):
    run = cartpole_run(tmp_path / "run")
    verification = compress(run, tmp_path / "small", prune=0.8, clusters=8, episodes=4)
    assert verification.passed
    manifest = read(tmp_path / "small")
    assert manifest["network"]["parameters"] == 4_610
    assert manifest["network"]["canonical_parameters"] < 3_500  # what pruning left without inputs or outputs is gone
    assert max(manifest["compression"]["clustering"]["values"].values()) <= 9
    sparsities = manifest["compression"]["pruning"]["layers"]
    assert sparsities == pytest.approx(
        {"dense_0": 0.0, "dense_1": 0.8 * (256 + 4_096 + 128) / 4_096, "q": 0.0}, abs=0.01
    )
    assert verification.rows[1].gzip_bytes < 0.6 * verification.rows[1].bytes


@pytest.mark.parametrize(
    ("options", "sentence"), [({"prune": 1.0}, "lies between 0 and 1"), ({"clusters": 1}, "at least 2 values")]
)
def test_what_cannot_be_done_is_refused_at_once(tmp_path, options, sentence):
    with pytest.raises(UserError, match=sentence):
        compress(cartpole_run(tmp_path / "run"), tmp_path / "small", **options)
