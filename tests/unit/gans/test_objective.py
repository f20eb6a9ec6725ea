import pytest
from kdgan_compress.gans.objectives import OBJECTIVES

from kdgan_compress.errors import KdganError
from kdgan_compress.gans import FAMILIES
from kdgan_compress.gans.objective import Batch, check_weights


def test_every_family_has_an_objective():
    assert OBJECTIVES.keys() == FAMILIES.keys()


@pytest.mark.parametrize("weight_g", [0.0, 0.3])
@pytest.mark.parametrize("weight_d", [0.0, 2.0])
def test_a_gan_has_losses_of_its_own_where_one_of_both_weighs(weight_g, weight_d):
    batch = Batch(None, None, None, weight_g, weight_d, distils=True, step=0)
    assert batch.has_own_losses == ((weight_g, weight_d) != (0, 0))


def test_the_first_bad_weight_is_named():
    check_weights(a=0, b=1e30)
    with pytest.raises(KdganError, match="got b = -2"):
        check_weights(a=0, b=-2, c=float("nan"))
