import dataclasses
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdgan_compress.errors import KdganError
from kdgan_compress.gans import FAMILIES, Architecture, build, channels_from_width, num_blocks

few = settings(max_examples=25, deadline=None, derandomize=True, database=None)


@pytest.mark.parametrize("image_size", [16, 32, 64, 128, 256])
def test_blocks_halve_the_image_down_to_4(image_size):
    side = image_size
    for _ in range(num_blocks(image_size)):
        side //= 2
    assert side == 4


@pytest.mark.parametrize("image_size", [-32, 0, 1, 4, 8, 15, 24, 33, 96])
def test_other_image_sizes_are_refused(image_size):
    with pytest.raises(KdganError, match=f"power of two of at least 16; got {image_size}\\."):
        num_blocks(image_size)


@few
@given(width=st.integers(1, 100), image_size=st.sampled_from([16, 32, 64, 128]))
def test_a_width_doubles_from_block_to_block(width, image_size):
    plan = channels_from_width(width, image_size)
    assert plan[0] == width
    assert all(after == 2 * before for before, after in itertools.pairwise(plan))
    architecture = Architecture(channels=plan, image_size=image_size)
    assert tuple(int(number) for number in architecture.channels_str.split("-")) == plan


@pytest.mark.parametrize("width", [0, -2])
def test_a_width_is_at_least_1(width):
    with pytest.raises(KdganError, match=f"width is below 1; got {width}"):
        channels_from_width(width)


def test_the_default_is_the_papers_teacher_for_grey_images():
    architecture = Architecture()
    assert architecture.channels_str == "64-128-256"
    assert (architecture.family, architecture.image_channels, architecture.image_size) == ("ede", 1, 32)
    assert (architecture.latent_size, architecture.norm) == (256, "instance")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"channels": (2, 4)}, r"32×32 image needs 3 channel numbers; got 2 \(2-4\)"),
        ({"channels": (2, 4, 8, 16)}, r"needs 3 channel numbers; got 4 \(2-4-8-16\)"),
        ({"channels": ()}, "needs 3 channel numbers; got 0"),
        ({"channels": (2, 4, 8), "image_size": 64}, "64×64 image needs 4 channel numbers; got 3"),
        ({"channels": (2, 0, 8)}, "below 1; got 2-0-8"),
        ({"image_size": 28}, "power of two of at least 16; got 28"),
        ({"image_channels": 2}, r"1 \(grey\) or 3 \(RGB\) channels; got 2"),
        ({"latent_size": 0}, "latent size is below 1; got 0"),
        ({"norm": "layer"}, "neither instance nor batch; got 'layer'"),
        ({"family": "cvgad", "num_clusters": 0}, "clusters K is below 1; got 0"),
        ({"family": "cvgad", "num_clusters": -3}, "clusters K is below 1; got -3"),
    ],
)
def test_what_cannot_be_built_is_refused(wrong, message):
    with pytest.raises(KdganError, match=message):
        Architecture(**wrong)


def test_replacing_a_field_checks_again():
    with pytest.raises(KdganError, match="4 channel numbers"):
        dataclasses.replace(Architecture(), image_size=64)


def test_only_a_family_with_clusters_describes_their_number():
    described = Architecture(family="cvgad", num_clusters=7).describe()
    assert described.pop("num_clusters") == "7"
    assert described == Architecture(family="cvgad").describe()


def test_an_unknown_family_names_those_that_exist():
    assert {"cvgad", "ed", "ed_ehat", "ede"} <= set(FAMILIES)
    with pytest.raises(KdganError, match=r"got 'vae'\. Choose one of .*cvgad, ed, ed_ehat, ede"):
        build(Architecture(family="vae"))
