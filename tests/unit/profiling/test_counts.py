import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kdgan_compress.gans import Architecture, anomaly_score, build
from kdgan_compress.profiling.counts import count

TABLE = [  # channels, image channels, parameters, MACs of convolutions
    ((64, 128, 256), 3, 5_123_712, 55_836_672),
    ((64, 128, 256), 1, 5_117_568, 54_263_808),
    ((8, 16, 64), 3, 843_408, 2_260_992),
    ((8, 16, 32), 3, 425_424, 1_474_560),
    ((2, 4, 8), 1, 100_404, 172_032),
    ((1, 2, 4), 1, 49_722, 73_728),
]


def small(**changes):
    return Architecture(**{"channels": (2, 4, 8), "latent_size": 16} | changes)


def by_hand(architecture, num_encoders):
    """Parameters, MACs and normalised numbers, layer by layer; a 4×4 kernel everywhere."""
    params = macs = normalised = 0
    sides = [architecture.image_size >> halvings for halvings in range(len(architecture.channels) + 1)]
    plan = (architecture.image_channels, *architecture.channels)
    for outer, inner, inner_side in zip(plan, plan[1:], sides[1:], strict=False):
        # One strided convolution of an encoder, and the transposed one that undoes its size in the decoder.
        kernel = 16 * outer * inner
        params += (num_encoders + 1) * kernel
        macs += (num_encoders + 1) * kernel * inner_side**2
        # A norm follows each inner layer, in the encoders and in the decoder, with a weight and a bias a channel.
        params += (num_encoders + 1) * 2 * inner
        normalised += (num_encoders + 1) * inner * inner_side**2
    to_latent = 16 * architecture.channels[-1] * architecture.latent_size
    return params + (num_encoders + 1) * to_latent, macs + (num_encoders + 1) * to_latent, normalised


def macs_by_torch(generator, architecture):
    image = torch.zeros(1, architecture.image_channels, architecture.image_size, architecture.image_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        anomaly_score(generator, image)
    return counter.get_total_flops() / 2


@pytest.mark.parametrize(("channels", "image_channels", "params", "macs"), TABLE)
def test_counts_are_the_table(channels, image_channels, params, macs):
    architecture = Architecture(channels=channels, image_channels=image_channels)
    generator = build(architecture).generator
    counts = count(generator, architecture)
    assert (counts.num_params, counts.conv_macs) == (params, macs)
    assert by_hand(architecture, num_encoders=2)[:2] == (params, macs)
    assert macs_by_torch(generator, architecture) == macs
    assert sum(parameter.numel() for parameter in generator.parameters()) == params


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("side", [16, 64])
def test_counts_at_other_sizes_agree_with_the_formula(norm, side):
    channels = (3, 5) if side == 16 else (2, 4, 3, 5)
    architecture = small(channels=channels, image_size=side, image_channels=3, norm=norm)
    generator = build(architecture).generator
    counts = count(generator, architecture)
    params, macs, normalised = by_hand(architecture, num_encoders=2)
    assert (counts.num_params, counts.conv_macs) == (params, macs)
    assert macs_by_torch(generator.eval(), architecture) == macs
    # fvcore charges 5 FLOPs for normalising a number, 2 where the statistics are known beforehand.
    assert counts.fvcore_flops == macs + (5 if norm == "instance" else 2) * normalised


def test_a_second_encoder_that_does_not_score_is_not_counted():
    ed, ed_ehat, ede = (small(family=family) for family in ("ed", "ed_ehat", "ede"))
    counts = count(build(ed).generator, ed)
    assert count(build(ed_ehat).generator, ed_ehat) == counts
    assert (counts.num_params, counts.conv_macs) == by_hand(ed, num_encoders=1)[:2]
    assert count(build(ede).generator, ede).conv_macs > counts.conv_macs


@pytest.mark.parametrize("training", [True, False])
def test_counting_leaves_the_model_as_it_was(training):
    architecture = small(norm="batch")
    generator = build(architecture).generator.train(training)
    generator.decoder.requires_grad_(False)
    generator.encoder.eval()
    before = copy.deepcopy(generator)
    count(generator, architecture)
    for name, value in generator.state_dict().items():
        assert torch.equal(value, before.state_dict()[name]), name
    assert [m.training for m in generator.modules()] == [m.training for m in before.modules()]
    assert [p.requires_grad for p in generator.parameters()] == [p.requires_grad for p in before.parameters()]
    assert all(parameter.grad is None for parameter in generator.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in generator.modules())


def test_a_frozen_generator_counts_the_same():
    architecture = small()
    generator = build(architecture).generator
    assert count(copy.deepcopy(generator).requires_grad_(False), architecture) == count(generator, architecture)


def ssim_macs(architecture):
    """Of 5 maps a channel the window's means, down the columns and along the rows, as products with a banded matrix."""
    side, inside = architecture.image_size, architecture.image_size - 10
    return 5 * architecture.image_channels * (inside * side * side + inside * side * inside)


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize(("side", "image_channels"), [(16, 1), (32, 3)])
def test_cvgad_counts_encoder_decoder_and_ssim_and_no_more(side, image_channels, norm):
    channels = (3, 5) if side == 16 else (2, 4, 3)
    architecture = small(
        family="cvgad", channels=channels, image_size=side, image_channels=image_channels, norm=norm, num_clusters=4
    )
    generator = build(architecture).generator
    counts = count(generator, architecture)
    params, macs, _ = by_hand(architecture, num_encoders=1)
    assert counts.num_params == params < sum(parameter.numel() for parameter in generator.parameters())
    assert counts.conv_macs == macs  # SSIM has no convolution
    assert counts.fvcore_flops > macs
    assert macs_by_torch(generator.eval(), architecture) == macs + ssim_macs(architecture)
    assert counts == count(generator, small(**vars(architecture) | {"num_clusters": 1}))
