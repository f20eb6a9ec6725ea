"""The drawn parts: repeatable, and a mask marks what differs."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reference.synthetic_parts import DEFECTS, draw_part, write_parts


@pytest.mark.parametrize("defect", DEFECTS)
def test_masks_mark_the_defect(defect: str) -> None:
    good, no_mask = draw_part(np.random.default_rng(3))
    bad, mask = draw_part(np.random.default_rng(3), defect)
    marked = np.asarray(mask) > 0
    assert not np.asarray(no_mask).any()
    assert 20 < marked.sum() < 2000
    difference = np.abs(np.asarray(good).astype(int) - np.asarray(bad)).sum(2)
    assert difference[marked].mean() > 3 * difference[~marked].mean()


def test_layout(tmp_path: Path) -> None:
    write_parts(tmp_path, num_train=2, num_good=1, num_defective=1)
    assert len(list((tmp_path / "train/good").iterdir())) == 2
    for name in ("test/chip/000.png", "ground_truth/chip/000_mask.png"):
        with Image.open(tmp_path / name) as image:
            assert image.size == (256, 256)
