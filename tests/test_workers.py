"""Jobs in processes of their own: what comes back, who survives whom."""

import importlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from rlplatform import workers
from rlplatform.workers import Job

ROOT = pathlib.Path(__file__).resolve().parent.parent
JOBS = '''
import os
import pathlib
import signal
import sys
import time

from rlplatform import workers
from rlplatform.errors import RunError


def double(number, ask):
    print("doubling", number)
    return 2 * number


def question(number, ask):
    return [ask(number + step) for step in range(3)]


def threads(ask):
    """How many threads this process has, once numpy is there."""
    import numpy

    numpy.ones((64, 64)) @ numpy.ones((64, 64))
    return len(os.listdir("/proc/self/task"))


def refuse(ask):
    raise RunError("the disk is full")


def stumble(ask):
    return 1 // 0


def die(ask):
    os.kill(os.getpid(), signal.SIGKILL)


def linger(place, ask):
    """Says that it is there, and leaves a note when it is asked to end."""
    ended = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    pathlib.Path(place, f"{os.getpid()}.there").touch()
    ask("there")
    while not ended:
        time.sleep(0.02)
    pathlib.Path(place, "saved").touch()


if __name__ == "__main__":
    place = sys.argv[1]
    jobs = [workers.Job(name, linger, (place,)) for name in "ab"]
    list(workers.run(jobs, 2, pathlib.Path(place), lambda job, message: None))
'''


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """A module whose functions a new process finds, since it is given this one's path."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "jobs_of_this_test.py").write_text(JOBS)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    sys.modules.pop("jobs_of_this_test", None)
    return importlib.import_module("jobs_of_this_test")


def test_every_job_gives_its_result_and_its_prints_go_to_its_log(jobs, tmp_path):
    asked = [Job(f"job-{number}", jobs.double, (number,)) for number in range(3)]
    done = list(workers.run(asked, 2, tmp_path, lambda job, message: None))
    assert sorted((it.job.name, it.result, it.error) for it in done) == [
        ("job-0", 0, None),
        ("job-1", 2, None),
        ("job-2", 4, None),
    ]
    assert (tmp_path / "job-1.log").read_text() == "doubling 1\n"


def test_a_question_is_answered(jobs, tmp_path):
    (done,) = workers.run([Job("asks", jobs.question, (5,))], 1, tmp_path, lambda job, message: (job.name, message))
    assert done.result == [("asks", 5), ("asks", 6), ("asks", 7)]


@pytest.mark.skipif(not pathlib.Path("/proc/self/task").is_dir(), reason="threads are counted as Linux shows them")
def test_numpy_has_no_threads_of_its_own_beside_other_processes(jobs, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    (done,) = workers.run([Job("counts", jobs.threads, ())], 1, tmp_path, lambda *_: None)
    assert done.result == 2  # the job's, and the one that waits for the parent's end
    assert "OMP_NUM_THREADS" not in os.environ


def test_a_job_that_fails_or_dies_takes_no_other_down(jobs, tmp_path):
    asked = [Job(it.__name__, it, ()) for it in (jobs.refuse, jobs.stumble, jobs.die)] + [
        Job("well", jobs.double, (1,))
    ]
    done = {it.job.name: it for it in workers.run(asked, 1, tmp_path, lambda job, message: None)}
    assert done["refuse"].error == "the disk is full"
    assert done["stumble"].error.startswith("ZeroDivisionError: ")
    assert "in stumble" in (tmp_path / "stumble.log").read_text()
    assert "was ended by SIGKILL" in done["die"].error
    assert (done["well"].result, done["well"].error) == (2, None)


def test_a_job_is_taken_only_after_the_one_before_was_dealt_with(jobs, tmp_path):
    results = [3]

    def chain():
        while results[-1] < 20:
            yield Job("next", jobs.double, (results[-1],))

    for done in workers.run(chain(), 1, tmp_path, lambda job, message: None):
        results.append(done.result)  # noqa: PERF401 - the chain reads it while this loop goes on
    assert results == [3, 6, 12, 24]


def test_a_job_that_waits_for_another_is_taken_when_that_one_has_ended(jobs, tmp_path):
    results = []

    def both():
        yield Job("first", jobs.double, (3,))
        while not results:
            yield None
        yield Job("second", jobs.double, (results[0],))

    for done in workers.run(both(), 2, tmp_path, lambda job, message: None):
        results.append(done.result)  # noqa: PERF401 - the jobs read it while this loop goes on
    assert results == [6, 12]


def test_leaving_early_lets_the_processes_save(jobs, tmp_path):
    def leave(job, message):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(workers.run([Job("lingers", jobs.linger, (str(tmp_path),))], 1, tmp_path, leave))
    assert (tmp_path / "saved").exists()


def test_processes_end_when_their_parent_is_killed(jobs, tmp_path):
    parent = subprocess.Popen([sys.executable, jobs.__file__, tmp_path], env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        until(lambda: len(list(tmp_path.glob("*.there"))) == 2)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    for there in tmp_path.glob("*.there"):
        until(lambda pid=int(there.stem): not alive(pid))
    assert not (tmp_path / "saved").exists()


def alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(holds, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
