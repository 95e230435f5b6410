"""An empty block has the shapes and dtypes that the compiled program was built for."""

from rlplatform.experience import Block


def test_an_empty_block_is_time_major_in_the_slots_dtypes():
    block = Block.empty(3, 2, (4, 5), "uint8", num_masked_actions=6)
    assert Block.empty(3, 2, (4, 5), "uint8").action_mask.shape == (3, 2, 0)
    shapes = {"observation": (3, 2, 4, 5), "action_mask": (3, 2, 6)}
    dtypes = {"observation": "uint8", "action": "int32", "reward": "float32"}
    for field, array in block._asdict().items():
        assert array.shape == shapes.get(field, (3, 2)), field
        assert array.dtype == dtypes.get(field, "bool"), field
        assert not array.any(), field
    assert len({array.__array_interface__["data"][0] for array in block}) == len(block)  # no two share memory
