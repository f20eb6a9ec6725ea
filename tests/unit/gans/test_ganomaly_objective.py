import copy

import pytest
import torch
from kdgan_compress.gans.ganomaly_objective import GanomalyObjective
from torch import nn

from kdgan_compress.distillation.hooks import FeatureHooks
from kdgan_compress.errors import KdganError
from kdgan_compress.gans import Architecture, Gan, build
from kdgan_compress.gans.objective import Batch

TAPS = ("z1", "x_hat", "z2")


def tiny(family="ede", norm="instance"):
    gan = build(
        Architecture(family=family, channels=(2, 4), image_channels=3, image_size=16, latent_size=16, norm=norm)
    )
    for network in gan.networks().values():
        network.double()
        for i, parameter in enumerate(network.parameters()):  # away from 0.02, where every term but S_con is tiny
            parameter.data = noise(*parameter.shape, seed=i) * 0.5
    return gan


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images():
    return noise(3, 3, 16, 16, seed=99).tanh()


def forward(gan):
    """What the taps give, without taps."""
    return lambda x: {name: out for name, out in zip(TAPS, gan.generator(x), strict=True) if out is not None}


def updates(gan, weights=(1.0, 1.0), objective=None, taps=None):
    """The updates of one batch, one after the other."""
    batch = Batch(images(), gan, taps or forward(gan), *weights, distils=False, step=0)
    return (objective or GanomalyObjective()).updates(batch)


def per_example(distance, a, b):
    return sum(distance(p - q) for p, q in zip(a, b, strict=True)) / len(a)


def ganomaly_by_hand(gan, x, weights, reduction):
    """GANomaly's step as its equations read, D run four times: terms, losses and both networks' gradients."""
    generator, discriminator = gan.generator, gan.discriminator
    z1, x_hat, z2 = generator(x)
    w_con, w_enc, w_adv = weights
    pairs = {"s_con": (x, x_hat), "s_adv": (discriminator(x)[0], discriminator(x_hat)[0])}
    if z2 is not None:
        pairs["s_enc"] = (z1, z2)
    terms = {}
    for name, (a, b) in pairs.items():
        if reduction == "mean":
            terms[name] = ((a - b).abs() if name == "s_con" else (a - b) ** 2).sum() / a.numel()
        elif name == "s_con":
            terms[name] = per_example(lambda d: d.abs().sum(), a, b)
        else:
            terms[name] = per_example(lambda d: (d**2).sum().sqrt(), a, b)
    loss_g = w_con * terms["s_con"] + w_adv * terms["s_adv"]
    if z2 is not None:
        loss_g = loss_g + w_enc * terms["s_enc"]
    real, fake = (torch.sigmoid(discriminator(side)[1]) for side in (x, x_hat.detach()))
    terms["s_ce"] = (-real.log().mean() - (1 - fake).log().mean()) / 2
    gradients = {
        "generator": torch.autograd.grad(loss_g, list(generator.parameters())),
        "discriminator": torch.autograd.grad(terms["s_ce"], list(discriminator.parameters())),
    }
    return terms, {"generator": loss_g, "discriminator": terms["s_ce"]}, gradients


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("reduction", ["mean", "norm"])
@pytest.mark.parametrize("family", ["ed", "ede"])
def test_the_updates_are_ganomalys(family, reduction, norm):
    gan = tiny(family, norm)
    by_hand = ganomaly_by_hand(copy.deepcopy(gan), images(), (7, 3, 2), reduction)
    expected_terms, expected_losses, expected = by_hand
    objective = GanomalyObjective(w_con=7, w_enc=3, w_adv=2, reduction=reduction)
    terms, order = {}, []
    for update in updates(gan, objective=objective):
        order.append(update.network)
        terms |= update.terms
        parameters = list(gan.networks()[update.network].parameters())
        update.loss.backward(inputs=parameters, retain_graph=update.keeps_graph)
        torch.testing.assert_close(update.loss, expected_losses[update.network])
        for parameter, gradient in zip(parameters, expected[update.network], strict=True):
            torch.testing.assert_close(parameter.grad, gradient)
            assert gradient.abs().max() > 0
        with torch.no_grad():  # the optimiser's step: D's update must still be of the x̂ before it
            for parameter in parameters:
                parameter.sub_(0.1 * parameter.grad)
        if update.network == "generator":
            assert all(parameter.grad is None for parameter in gan.discriminator.parameters())
    assert order == ["generator", "discriminator"]
    assert terms.keys() == expected_terms.keys()
    for name, term in terms.items():
        torch.testing.assert_close(term, expected_terms[name])


def test_through_taps_the_updates_are_the_same():
    gan = tiny()
    plain = list(updates(gan))
    with FeatureHooks(gan.generator, gan.taps) as taps:
        tapped = list(updates(gan, taps=taps))
    assert [update.loss for update in tapped] == [update.loss for update in plain]


@pytest.mark.parametrize("in_one_call", [True, False])
def test_f_of_the_images_is_a_constant_in_l_g(in_one_call):
    gan, seen = tiny(), []

    def watched(x):
        features, logit = gan.discriminator(x)
        features.retain_grad()
        seen.append(features)
        return features, logit

    update = next(updates(Gan(gan.generator, gan.taps, watched, is_batch_independent=in_one_call)))
    update.loss.backward()
    assert [len(features) for features in seen] == ([6] if in_one_call else [3, 3])
    of_images, of_reconstructions = seen[0].grad.chunk(2) if in_one_call else (features.grad for features in seen)
    assert of_images is None or not of_images.any()
    assert of_reconstructions.abs().sum() > 0


@pytest.mark.parametrize(("norm", "calls"), [("instance", [6]), ("batch", [3, 3])])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)])
def test_one_batch_runs_the_discriminator_once_where_images_are_apart(norm, calls, weights):
    gan, seen = tiny(norm=norm), []
    gan.discriminator.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    list(updates(gan, weights))
    assert seen == calls


@pytest.mark.parametrize(
    ("weights", "kept"), [((1.0, 1.0), [True, False]), ((1.0, 0.0), [False]), ((0.0, 1.0), [True, False])]
)
def test_the_graph_is_kept_for_the_discriminator_alone(weights, kept):
    gan = tiny()
    batch = list(updates(gan, weights))
    assert [update.keeps_graph for update in batch] == kept
    for update in batch:  # what is not kept is not needed
        if update.loss is not None:
            update.loss.backward(retain_graph=update.keeps_graph)


def test_one_batch_runs_the_generator_once():
    gan, calls = tiny(), []
    gan.generator.register_forward_hook(lambda *_: calls.append(1))
    list(updates(gan))
    assert len(calls) == 1


def test_coefficients_scale_the_losses_and_not_the_terms():
    gan = tiny()
    plain, scaled = (list(updates(gan, weights)) for weights in ((1.0, 1.0), (3.0, 0.25)))
    for one, other, factor in zip(plain, scaled, (3, 0.25), strict=True):
        torch.testing.assert_close(other.loss, factor * one.loss)
        assert one.terms == other.terms


def test_default_weights_are_the_papers():
    gan = tiny()
    update, _ = updates(gan)
    expected = 10 * update.terms["s_con"] + update.terms["s_enc"] + update.terms["s_adv"]
    torch.testing.assert_close(update.loss, expected)


def test_a_family_without_z2_has_no_s_enc():
    gan = tiny("ed")
    of_generator, of_discriminator = updates(gan)
    assert set(of_generator.terms) == {"s_con", "s_adv"}
    assert set(of_discriminator.terms) == {"s_ce"}
    assert set(of_generator.outputs) == {"z1", "x_hat"}


class Untouchable(nn.Module):
    def forward(self, x):
        raise AssertionError("nobody should call this")


@pytest.mark.parametrize("discriminator", [None, Untouchable()])
def test_without_losses_of_its_own_a_gan_is_only_run(discriminator):
    gan = tiny()
    (update,) = updates(Gan(gan.generator, gan.taps, discriminator), (0.0, 0.0))
    assert (update.network, update.loss, update.terms) == ("generator", None, {})
    assert torch.equal(update.outputs["z2"], gan.generator(images())[2])
    assert update.outputs["z2"].requires_grad


def test_without_l_d_the_discriminator_is_not_moved():
    gan = tiny()
    both = list(updates(gan))
    (update,) = updates(gan, (1.0, 0.0))
    assert update.network == "generator"
    assert torch.equal(update.loss, both[0].loss)


def test_without_l_g_the_generator_is_run_and_the_discriminator_moved():
    gan = tiny()
    both = list(updates(gan))
    first, second = updates(gan, (0.0, 1.0))
    assert (first.network, first.loss, first.terms) == ("generator", None, {})
    assert set(first.outputs) == set(TAPS)
    assert second.network == "discriminator"
    assert torch.equal(second.loss, both[1].loss)
    assert second.outputs is None  # K_l has no business with the discriminator


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_own_losses_want_a_discriminator(weights):
    gan = tiny()
    with pytest.raises(KdganError, match="must have a discriminator; found none"):
        list(updates(Gan(gan.generator, gan.taps), weights))


@pytest.mark.parametrize("name", ["w_con", "w_enc", "w_adv"])
@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_are_finite_and_at_least_0(name, weight):
    with pytest.raises(KdganError, match=f"finite number ≥ 0; got {name} = {weight:g}"):
        GanomalyObjective(**{name: weight})
