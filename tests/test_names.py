from __future__ import annotations

import pytest

from alloykit.names import takes_maximum, wrapper_prefix


@pytest.mark.parametrize(
    ("names", "prefix"),
    [
        ([], ""),
        (["w", "b"], ""),
        (["module.w", "module.b"], "module."),
        (["_orig_mod.w"], "_orig_mod."),
        (["module._orig_mod.w", "module._orig_mod.b"], "module._orig_mod."),
        (["_orig_mod.module.module.w"], "_orig_mod.module.module."),
        (["module.w", "b"], ""),
        (["module.w", "_orig_mod.b"], ""),
        (["module.w", "module.module.b"], "module."),
        (["modules.w"], ""),
        (["encoder.module.w"], ""),
        (["model.w"], ""),
    ],
)
def test_only_what_every_name_carries_is_a_wrapper(names, prefix):
    assert wrapper_prefix(names) == prefix
    assert wrapper_prefix(iter(names)) == prefix


@pytest.mark.parametrize(
    ("name", "maximum"),
    [
        ("bn.num_batches_tracked", True),
        ("num_batches_tracked", True),
        ("bn.num_batches_tracked.x", False),
        ("bn.my_num_batches_tracked", False),
        ("position_ids", False),
    ],
)
def test_only_the_counter_of_batch_norm_takes_the_maximum(name, maximum):
    assert takes_maximum(name) is maximum
