import pytest
import torch

from kdgan_compress.errors import KdganError
from kdgan_compress.gans.objective import check_weights, is_nonzero


@pytest.mark.parametrize(
    ("weight", "expected"), [(0.0, False), (0, False), (1e-9, True), (2.0, True), (torch.tensor([0.0, 1.0]), True)]
)
def test_a_loss_is_used_where_its_weight_is_not_0(weight, expected):
    assert is_nonzero(weight) is expected


def test_the_first_bad_weight_is_named():
    check_weights(a=0, b=1e30)
    with pytest.raises(
        KdganError, match=r"weight of a loss is out of range; got b = -2\. Set it to a finite number ≥ 0"
    ):
        check_weights(a=0, b=-2, c=float("nan"))
