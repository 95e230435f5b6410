"""A folder is held by one process at a time."""

import pytest

from rlplatform.errors import UserError
from rlplatform.files import exclusive


def test_a_folder_is_held_by_one_and_taken_away_if_nothing_has_come_into_it(tmp_path):
    with (
        exclusive(tmp_path / "held"),
        pytest.raises(UserError, match="another process works on"),
        exclusive(tmp_path / "held"),
    ):
        pass
    assert not (tmp_path / "held").exists()
    with exclusive(tmp_path / "held"):
        (tmp_path / "held" / "result").touch()
    assert (tmp_path / "held" / "result").exists()
