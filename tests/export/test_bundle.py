import hashlib
import json
import os

import pytest

from rlplatform.errors import RunError, UserError
from rlplatform.export import bundle, read
from rlplatform.runtime import MANIFEST

PARTS = {"environment": {}, "observation": {}, "action": {}, "variants": {}, "default": "float"}


def write(out, overwrite=False, text="weights"):
    with bundle.draft(out, overwrite) as folder:
        (folder / "policy.tflite").write_text(text)
        (folder / "saved_model").mkdir()
        (folder / "saved_model" / "saved_model.pb").write_text("graph")
        bundle.seal(folder, PARTS, {"policy.tflite": {"made": "by hand"}})


def test_a_bundle_is_read_back_with_the_hash_of_every_file(tmp_path):
    write(tmp_path / "b")
    manifest = read(tmp_path / "b")
    assert set(manifest["files"]) == {"policy.tflite", "saved_model/saved_model.pb"}
    entry = manifest["files"]["policy.tflite"]
    assert entry["sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert (entry["bytes"], entry["made"]) == (7, "by hand")
    assert os.listdir(tmp_path) == ["b"]


@pytest.mark.parametrize("name", ["policy.tflite", "saved_model/saved_model.pb", MANIFEST])
def test_a_byte_changed_in_any_file_is_refused_by_its_name(tmp_path, name):
    write(tmp_path / "b")
    content = bytearray((tmp_path / "b" / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "b" / name).write_bytes(content)
    with pytest.raises(RunError, match=f"gate 'hashes' failed: .*{name} was changed after it was written"):
        read(tmp_path / "b")


def test_a_missing_file_is_refused_by_its_name(tmp_path):
    write(tmp_path / "b")
    (tmp_path / "b" / "policy.tflite").unlink()
    with pytest.raises(RunError, match=r"policy\.tflite cannot be read: No such file"):
        read(tmp_path / "b")


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"is not a policy bundle: it has no policy\.json"):
            read(path)


def test_a_bundle_is_overwritten_only_when_that_is_asked_for(tmp_path):
    write(tmp_path / "b", text="old")
    with pytest.raises(UserError, match="holds a bundle already; overwrite it with --overwrite"):
        write(tmp_path / "b")
    assert (tmp_path / "b" / "policy.tflite").read_text() == "old"
    write(tmp_path / "b", overwrite=True, text="new")
    assert (tmp_path / "b" / "policy.tflite").read_text() == "new"
    assert os.listdir(tmp_path) == ["b"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_bundle_is_never_overwritten(tmp_path, overwrite):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="is not empty and is no bundle, so it stays as it is"):
        write(tmp_path / "mine", overwrite)
    (tmp_path / "file").write_text("a file")
    with pytest.raises(UserError, match="is a file; a bundle is a folder"):
        write(tmp_path / "file", overwrite)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_an_empty_folder_becomes_the_bundle(tmp_path):
    (tmp_path / "b").mkdir()
    write(tmp_path / "b")
    read(tmp_path / "b")


def test_a_bundle_that_fails_half_way_leaves_what_was_there_and_nothing_else(tmp_path):
    write(tmp_path / "b", text="old")

    def fail():
        with bundle.draft(tmp_path / "b", True) as folder:
            (folder / "policy.tflite").write_text("half")
            raise RunError("a gate failed")

    with pytest.raises(RunError, match="a gate failed"):
        fail()
    assert (tmp_path / "b" / "policy.tflite").read_text() == "old"
    assert os.listdir(tmp_path) == ["b"]


def test_what_appears_meanwhile_is_not_overwritten(tmp_path):
    def race():
        with bundle.draft(tmp_path / "b", False) as folder:
            bundle.seal(folder, PARTS, {})
            write(tmp_path / "b", text="the other one")

    with pytest.raises(UserError, match="holds a bundle already"):
        race()
    assert (tmp_path / "b" / "policy.tflite").read_text() == "the other one"


def test_a_rename_that_fails_brings_the_old_bundle_back(tmp_path, monkeypatch):
    write(tmp_path / "b", text="old")
    rename = type(tmp_path).rename

    def fail(self, target):
        if ".partial-" in self.name:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(type(tmp_path), "rename", fail)
    with pytest.raises(RunError, match="is full, so the bundle could not be written"):
        write(tmp_path / "b", overwrite=True, text="new")
    assert (tmp_path / "b" / "policy.tflite").read_text() == "old"
    assert os.listdir(tmp_path) == ["b"]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="the bundle could not be written; what was there before is as it was"):
        write(tmp_path / "file" / "b")


def test_the_manifest_is_json_that_other_programs_read(tmp_path):
    write(tmp_path / "b")
    text = (tmp_path / "b" / MANIFEST).read_text()
    manifest = json.loads(text)
    zeroed = text.replace(manifest["sha256"], "0" * 64)
    assert manifest["sha256"] == hashlib.sha256(zeroed.encode()).hexdigest()
