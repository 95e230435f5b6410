"""Checkpoints: what is saved comes back, and nothing that fails or is killed loses an older one."""

import builtins
import errno
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rlplatform import files
from rlplatform.errors import RunError
from rlplatform.files import write_atomically
from rlplatform.training.checkpoints import Checkpoints


def filled(step):
    """The variables and the host state that the tests save at a step."""
    variables = {"weights": np.full((3, 4), step, np.float32), "counter": np.array(step, np.int64)}
    return variables, {"rng": np.random.default_rng(step).bit_generator.state, "env": bytes(step % 7)}


def save(folder, *steps, keep=2):
    path = folder
    for step in steps:
        path = Checkpoints(folder, keep).save(step, *filled(step))
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def assert_is(saved, step):
    variables, host = filled(step)
    assert saved.step == step
    assert saved.host == host
    assert list(saved.variables) == list(variables)
    for name, array in variables.items():
        np.testing.assert_array_equal(saved.variables[name], array)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


# --- what goes in comes out -----------------------------------------------------------------------------------------


@pytest.mark.slow
@given(
    arrays=st.lists(
        hnp.arrays(
            st.sampled_from([np.float32, np.float16, np.int64, np.uint8, np.bool_, np.uint64]),
            hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
        ),
        max_size=4,
    ),
    transposed=st.booleans(),
)
def test_every_array_comes_back_bit_for_bit(arrays, transposed):
    variables = {f"layer/{i}:0": array.T if transposed else array for i, array in enumerate(arrays)}
    with tempfile.TemporaryDirectory() as folder:
        store = Checkpoints(pathlib.Path(folder) / "checkpoints", 1)
        store.save(7, variables, {})
        saved = store.restore()
    assert list(saved.variables) == list(variables)
    for name, array in variables.items():
        assert saved.variables[name].dtype == array.dtype
        assert saved.variables[name].shape == array.shape
        assert saved.variables[name].tobytes() == array.tobytes()


def test_the_host_state_comes_back_as_it_was(folder):
    rng = np.random.default_rng(3)
    Checkpoints(folder, 1).save(
        10, {}, {"rng": rng, "env": b"\x00" * 5000, "callbacks": [("EarlyStopping", {"wait": 2})]}
    )
    host = Checkpoints(folder, 1).restore().host
    assert host["env"] == b"\x00" * 5000
    assert host["callbacks"] == [("EarlyStopping", {"wait": 2})]
    assert host["rng"].random() == rng.random()


def test_an_empty_or_missing_folder_restores_nothing(tmp_path):
    assert Checkpoints(tmp_path, 1).restore() is None
    assert Checkpoints(tmp_path / "never", 1).restore() is None
    assert names(tmp_path) == []


def test_an_array_that_would_not_come_back_is_refused(folder):
    save(folder, 1)
    with pytest.raises(TypeError, match="'text' is of object"):
        Checkpoints(folder, 1).save(2, {"text": np.array(["a"], object)}, {})
    assert names(folder) == ["step_000000001"]


def test_the_manifest_holds_the_sizes_and_sums_of_the_files(folder):
    path = save(folder, 12)
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["step"] == 12
    assert set(manifest["files"]) == {"variables.npy", "host.pkl"}
    for name, entry in manifest["files"].items():
        data = (path / name).read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_numpy_alone_reads_the_arrays(folder):
    path = save(folder, 5)
    with open(path / "variables.npy", "rb") as file:
        np.testing.assert_array_equal(np.load(file), np.full((3, 4), 5, np.float32))
        assert np.load(file) == 5


# --- which are kept -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@given(steps=st.lists(st.integers(0, 10**10), min_size=1, max_size=6, unique=True), keep=st.integers(1, 4))
@settings(max_examples=30)
def test_the_newest_are_kept_and_the_newest_is_restored(steps, keep):
    with tempfile.TemporaryDirectory() as parent:
        folder = pathlib.Path(parent) / "checkpoints"
        save(folder, *sorted(steps), keep=keep)
        assert names(folder) == sorted(f"step_{step:09d}" for step in sorted(steps)[-keep:])
        assert_is(Checkpoints(folder, keep).restore(), max(steps))


def test_what_killed_runs_left_is_removed_by_the_next_save_but_not_by_a_reader(folder):
    save(folder, 1)
    (folder / ".partial-step_000000002-99").mkdir()
    (folder / ".partial-step_000000002-99" / "variables.npy").write_bytes(b"half")
    assert_is(Checkpoints(folder, 1).restore(), 1)
    assert len(names(folder)) == 2
    save(folder, 2)
    assert names(folder) == ["step_000000001", "step_000000002"]


def test_a_step_saved_again_replaces_the_first(folder):
    save(folder, 1, 2)
    for value in (b"again", b"and again"):
        Checkpoints(folder, 2).save(2, {}, {"value": value})
        assert Checkpoints(folder, 2).restore().host == {"value": value}
        assert len(names(folder)) == 2


def test_steps_that_an_abandoned_course_has_left_behind_are_deleted(folder):
    """The run went to 30, whose checkpoint broke; it goes on from 20 and saves at 25: 30 is no longer its future."""
    save(folder, 10, 20, keep=3)
    (save(folder, 30, keep=3) / "host.pkl").unlink()
    save(folder, 25, keep=3)
    assert names(folder) == ["step_000000010", "step_000000020", "step_000000025"]


# --- broken ones ----------------------------------------------------------------------------------------------------


def truncate(path):
    os.truncate(path, path.stat().st_size - 1)


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("file", ["variables.npy", "host.pkl", "manifest.json"])
@pytest.mark.parametrize("damage", [truncate, flip, pathlib.Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_broken_newest_one_is_skipped_with_a_warning(folder, file, damage):
    damage(save(folder, 1, 2) / file)
    with pytest.warns(UserWarning, match=r"^skipped step_000000002 \(.*\) in .* and took step_000000001$"):
        assert_is(Checkpoints(folder, 2).restore(), 1)


def test_a_damaged_pickle_is_never_unpickled(folder):
    path = save(folder, 1) / "host.pkl"
    trap = b"cos\n_exit\n(I3\ntR."  # unpickling this ends the process
    path.write_bytes(trap.ljust(path.stat().st_size))
    with pytest.raises(RunError, match=r"host\.pkl is damaged"):
        Checkpoints(folder, 1).restore()


def test_a_format_of_another_version_is_named(folder):
    path = save(folder, 1) / "manifest.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(RunError, match="format 99, this version reads 1"):
        Checkpoints(folder, 1).restore()


def test_one_step_renamed_to_another_is_refused(folder):
    path = save(folder, 1)
    path.rename(path.with_name("step_000000009"))
    with pytest.raises(RunError, match="its manifest is that of step 1"):
        Checkpoints(folder, 1).restore()


def test_when_none_verifies_every_one_is_named(folder):
    for path in (save(folder, 1), save(folder, 2)):
        truncate(path / "variables.npy")
    with pytest.raises(
        RunError, match=r"no checkpoint in .* is complete: step_000000002 \(.*\), step_000000001 \(.*\)"
    ):
        Checkpoints(folder, 2).restore()


# --- disks that fail ------------------------------------------------------------------------------------------------


@pytest.fixture
def mounted(tmp_path):
    """A function that mounts a small tmpfs, with options of mount's; skips where mounting is not permitted."""
    made = []

    def mount(options):
        place = tmp_path / "disk"
        if not made:
            place.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
        made.append(place)
        return place

    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting needs root on Linux")
    yield mount
    for place in made[:1]:
        subprocess.run(["umount", place], check=True)


def test_a_full_disk_loses_nothing_older(mounted):
    folder = mounted("size=300k") / "checkpoints"
    save(folder, 1, keep=1)
    for _ in range(2):  # the second time finds the place that the first one took freed again
        with pytest.raises(RunError, match=r"^the disk of .* is full, so the checkpoint of step 2 .* is still step 1$"):
            Checkpoints(folder, 1).save(2, {"big": np.zeros(10**6, np.uint8)}, {})
        assert names(folder) == ["step_000000001"]
        assert_is(Checkpoints(folder, 1).restore(), 1)
    save(folder, 3, keep=1)
    assert names(folder) == ["step_000000003"]


def test_a_read_only_disk_loses_nothing(mounted):
    place = mounted("size=300k")
    save(place / "checkpoints", 1)
    mounted("remount,ro")
    with pytest.raises(RunError, match=r"checkpoints is read-only here, so .* step 2 .* is still step 1$"):
        save(place / "checkpoints", 2)
    with pytest.raises(RunError, match=r"is read-only here, so config\.toml could not be written"):
        write_atomically(place / "config.toml", "seed = 1\n")
    assert_is(Checkpoints(place / "checkpoints", 1).restore(), 1)


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "the disk of .* is full"),
        (errno.EDQUOT, "the disk of .* is full"),
        (errno.EROFS, "is read-only here"),
        (errno.EACCES, "is read-only here"),
        (errno.EIO, "Input/output error in"),
    ],
)
def test_each_failure_while_writing_is_one_sentence(folder, monkeypatch, number, reason):
    save(folder, 1)

    def refuse(descriptor):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(
            RunError, match=rf"{reason}.*, so the checkpoint of step 2 could not be written; .* step 1$"
        ):
            save(folder, 2)
        with pytest.raises(RunError, match=rf"{reason}.*, so a\.txt could not be written; a\.txt is as it was before$"):
            write_atomically(folder.parent / "a.txt", "x")
    assert names(folder) == ["step_000000001"]
    assert names(folder.parent) == ["checkpoints"]
    assert_is(Checkpoints(folder, 2).restore(), 1)


def test_a_run_folder_that_has_vanished_is_named_and_not_made_again(tmp_path):
    run = tmp_path / "run"
    with pytest.raises(
        RunError, match=r"run is gone, so the checkpoint of step 1 .*; there is no complete checkpoint$"
    ):
        save(run / "checkpoints", 1)
    assert not run.exists()


def test_a_file_where_the_folder_should_be_is_named(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(RunError, match="checkpoints is not a folder, so"):
        save(tmp_path / "checkpoints", 1)
    (tmp_path / "run").write_text("")
    with pytest.raises(RunError, match="run is not a folder, so"):
        save(tmp_path / "run" / "checkpoints", 1)


# --- kills ----------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process is gone; nothing that comes after this changes the disk."""


class Disk:
    """Counts the file operations of a writer, stops it at one of them, and then forgets what was not synced."""

    def __init__(self, patch, kill_at):
        self.left, self.unsynced = kill_at, set()
        for name in ("mkdir", "rename", "replace", "unlink", "rmdir"):
            patch.setattr(os, name, self.counted(getattr(os, name)))
        real_fsync = os.fsync

        def fsync(descriptor):
            self.step()
            real_fsync(descriptor)
            self.unsynced.discard(os.fstat(descriptor).st_ino)

        patch.setattr(os, "fsync", fsync)
        patch.setattr(files, "open", self.open, raising=False)

    def step(self):
        self.left -= 1
        if self.left < 0:
            raise Killed

    def counted(self, real):
        def operation(*args, **kwargs):
            self.step()
            return real(*args, **kwargs)

        return operation

    def open(self, path, mode):
        self.step()
        file = builtins.open(path, mode, buffering=0)  # noqa: SIM115
        self.unsynced.add(os.fstat(file.fileno()).st_ino)
        real, disk = file.write, self

        class File:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                file.close()

            def write(self, data):
                if disk.left == 0:
                    real(bytes(data)[: len(data) // 2])
                disk.step()
                return real(data)

            def flush(self):
                disk.step()

            def fileno(self):
                return file.fileno()

        return File()

    def power_cut(self, folder):
        for path in folder.rglob("*"):
            if path.stat().st_ino in self.unsynced:
                os.truncate(path, 0)


@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize(
    ("before", "step"), [(0, 1), (1, 2), (1, 1), *(pytest.param(3, step, marks=pytest.mark.slow) for step in (4, 3))]
)
def test_a_writer_killed_at_any_moment_leaves_the_old_or_the_new(before, step, keep, power, monkeypatch):
    """Kills one save at each of its file operations in turn; with `power`, what was not synced is lost as well."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # the disk below keeps the books; the real one is slow
    outcomes = []
    killed = True
    while killed:
        with tempfile.TemporaryDirectory() as parent:
            folder = pathlib.Path(parent) / "checkpoints"
            save(folder, *range(1, before + 1), keep=keep)
            with pytest.MonkeyPatch.context() as patch:
                disk = Disk(patch, kill_at=len(outcomes))
                try:
                    Checkpoints(folder, keep).save(step, filled(step)[0], {"new": True})
                    killed = False
                except Killed:
                    pass
            if power:
                disk.power_cut(folder)
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                saved = Checkpoints(folder, keep).restore()
            assert not warned
            for path in folder.glob("step_*"):  # a half checkpoint never has the name of a whole one
                assert sorted(file.stat().st_size > 0 for file in path.iterdir()) == [True] * 3
            outcomes.append("nothing" if saved is None else "new" if saved.host == {"new": True} else "old")
            if outcomes[-1] == "old":
                assert_is(saved, before)
            save(folder, step + 1, keep=keep)  # and the next save works
            assert_is(Checkpoints(folder, keep).restore(), step + 1)
            assert len(names(folder)) <= keep
            assert all(name.startswith("step_") for name in names(folder))
    turn = outcomes.index("new")
    assert 15 < turn < len(outcomes)
    assert outcomes == ["old" if before else "nothing"] * turn + ["new"] * (len(outcomes) - turn)


def test_an_interrupted_save_cleans_up_behind_itself(folder, monkeypatch):
    save(folder, 1)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            save(folder, 2)
        with pytest.raises(KeyboardInterrupt):
            write_atomically(folder / "a.txt", "x")
    assert names(folder) == ["step_000000001"]


# --- write_atomically -----------------------------------------------------------------------------------------------


def test_a_file_is_written_whole_and_over_the_old_one(tmp_path):
    write_atomically(tmp_path / "config.toml", "seed = 1\n")
    write_atomically(tmp_path / "config.toml", "name = 'é'\n")
    assert (tmp_path / "config.toml").read_bytes() == "name = 'é'\n".encode()
    write_atomically(tmp_path / "best.npz", b"\x00\xff")
    assert (tmp_path / "best.npz").read_bytes() == b"\x00\xff"
    assert names(tmp_path) == ["best.npz", "config.toml"]


@pytest.mark.parametrize("kill_at", range(8))
def test_a_file_whose_writer_was_killed_is_the_old_or_the_new(tmp_path, kill_at):
    path = tmp_path / "config.toml"
    path.write_text("old")
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, kill_at)
        try:
            write_atomically(path, "new")
            done = True
        except Killed:
            done = False
    disk.power_cut(tmp_path)
    assert path.read_text() == "new" if done else path.read_text() in ("old", "new")


def test_a_file_in_a_folder_that_is_gone_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"run is gone, so config\.toml could not be written"):
        write_atomically(tmp_path / "run" / "config.toml", "seed = 1\n")
