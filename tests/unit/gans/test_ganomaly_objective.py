import copy

import pytest
import torch
from recording_state import RecordingState
from torch import nn

from kdgan_compress.distillation.hooks import FeatureHooks
from kdgan_compress.errors import KdganError
from kdgan_compress.gans import Architecture, Gan, build
from kdgan_compress.gans.ede import GanomalyObjective

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
    """The features, without hooks."""
    return lambda x: {name: out for name, out in zip(TAPS, gan.generator(x), strict=True) if out is not None}


def train_step(gan, weights=(1.0, 1.0), objective=None, forward_pass=None, **recorder):
    """The updates of one batch, and the losses that are reported; ``k_l`` and ``on_update`` as the tests need them."""
    k_l = recorder.pop("k_l", None)
    state = RecordingState(gan, forward_pass or forward(gan), **recorder)
    losses = (objective or GanomalyObjective()).train_step(state, images(), *weights, k_l=k_l)
    return state.updates, losses


def per_sample(distance, a, b):
    return sum(distance(p - q) for p, q in zip(a, b, strict=True)) / len(a)


def ganomaly_by_hand(gan, x, weights, distance_kind):
    """GANomaly's step as its equations read, D run four times: losses, losses and both networks' gradients."""
    generator, discriminator = gan.generator, gan.discriminator
    z1, x_hat, z2 = generator(x)
    w_con, w_enc, w_adv = weights
    pairs = {"s_con": (x, x_hat), "s_adv": (discriminator(x)[0], discriminator(x_hat)[0])}
    if z2 is not None:
        pairs["s_enc"] = (z1, z2)
    losses = {}
    for name, (a, b) in pairs.items():
        if distance_kind == "mean":
            losses[name] = ((a - b).abs() if name == "s_con" else (a - b) ** 2).sum() / a.numel()
        elif name == "s_con":
            losses[name] = per_sample(lambda d: d.abs().sum(), a, b)
        else:
            losses[name] = per_sample(lambda d: (d**2).sum().sqrt(), a, b)
    loss_g = w_con * losses["s_con"] + w_adv * losses["s_adv"]
    if z2 is not None:
        loss_g = loss_g + w_enc * losses["s_enc"]
    real, fake = (torch.sigmoid(discriminator(side)[1]) for side in (x, x_hat.detach()))
    losses["s_ce"] = (-real.log().mean() - (1 - fake).log().mean()) / 2
    gradients = {
        "generator": torch.autograd.grad(loss_g, list(generator.parameters())),
        "discriminator": torch.autograd.grad(losses["s_ce"], list(discriminator.parameters())),
    }
    return losses, {"generator": loss_g, "discriminator": losses["s_ce"]}, gradients


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("distance_kind", ["mean", "norm"])
@pytest.mark.parametrize("family", ["ed", "ede"])
def test_the_updates_are_ganomalys(family, distance_kind, norm):
    gan = tiny(family, norm)
    by_hand = ganomaly_by_hand(copy.deepcopy(gan), images(), (7, 3, 2), distance_kind)
    expected_losses, expected_totals, expected = by_hand

    def descend(update):
        parameters = list(gan.networks()[update.network].parameters())
        update.loss.backward(inputs=parameters, retain_graph=update.retain_graph)
        torch.testing.assert_close(update.loss, expected_totals[update.network])
        for parameter, gradient in zip(parameters, expected[update.network], strict=True):
            torch.testing.assert_close(parameter.grad, gradient)
            assert gradient.abs().max() > 0
        with torch.no_grad():  # the optimiser's step: D's update must still be of the x̂ before it
            for parameter in parameters:
                parameter.sub_(0.1 * parameter.grad)
        if update.network == "generator":
            assert all(parameter.grad is None for parameter in gan.discriminator.parameters())

    objective = GanomalyObjective(w_con=7, w_enc=3, w_adv=2, distance=distance_kind)
    updates, losses = train_step(gan, objective=objective, on_update=descend)
    assert [update.network for update in updates] == ["generator", "discriminator"]
    assert losses.keys() == expected_losses.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected_losses[name])


def test_through_hooks_the_updates_are_the_same():
    gan = tiny()
    plain, _ = train_step(gan)
    with FeatureHooks(gan.generator, gan.taps) as hooks:
        hooked, _ = train_step(gan, forward_pass=hooks)
    assert [update.loss for update in hooked] == [update.loss for update in plain]


@pytest.mark.parametrize("in_one_call", [True, False])
def test_f_of_the_images_is_a_constant_in_l_g(in_one_call):
    gan, seen = tiny(), []

    def watched(x):
        features, logit = gan.discriminator(x)
        features.retain_grad()
        seen.append(features)
        return features, logit

    (update, _), _ = train_step(Gan(gan.generator, gan.taps, watched, is_batch_independent=in_one_call))
    update.loss.backward()
    assert [len(features) for features in seen] == ([6] if in_one_call else [3, 3])
    of_images, of_reconstructions = seen[0].grad.chunk(2) if in_one_call else (features.grad for features in seen)
    assert of_images is None or not of_images.any()
    assert of_reconstructions.abs().sum() > 0


@pytest.mark.parametrize(("norm", "calls"), [("instance", [6]), ("batch", [3, 3])])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)])
def test_one_batch_runs_the_discriminator_once_where_images_are_independent(norm, calls, weights):
    gan, seen = tiny(norm=norm), []
    gan.discriminator.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    train_step(gan, weights)
    assert seen == calls


def k_l_of_z1(outputs):
    return outputs["z1"].square().mean()


@pytest.mark.parametrize("k_l", [None, k_l_of_z1], ids=["without K_l", "with K_l"])
@pytest.mark.parametrize(
    ("weights", "retained"), [((1.0, 1.0), [True, False]), ((1.0, 0.0), [False]), ((0.0, 1.0), [True, False])]
)
def test_the_graph_is_retained_for_the_discriminator_only(weights, retained, k_l):
    def backward(update):  # what is not retained is not needed
        update.loss.backward(retain_graph=update.retain_graph)

    updates, _ = train_step(tiny(), weights, k_l=k_l, on_update=backward)
    if weights[0] == 0 and k_l is None:  # nothing trains the generator
        retained = retained[1:]
    assert [update.retain_graph for update in updates] == retained


def test_one_batch_runs_the_generator_once():
    gan, calls = tiny(), []
    gan.generator.register_forward_hook(lambda *_: calls.append(1))
    train_step(gan, k_l=k_l_of_z1)
    assert len(calls) == 1


def test_coefficients_scale_the_losses_and_not_what_is_reported():
    gan = tiny()
    (plain, losses), (scaled, same) = (train_step(gan, weights) for weights in ((1.0, 1.0), (3.0, 0.25)))
    assert losses == same
    for one, other, factor in zip(plain, scaled, (3, 0.25), strict=True):
        torch.testing.assert_close(other.loss, factor * one.loss)


def test_default_weights_are_the_papers():
    (update, _), losses = train_step(tiny())
    torch.testing.assert_close(update.loss, 10 * losses["s_con"] + losses["s_enc"] + losses["s_adv"])


def test_a_family_without_z2_has_no_s_enc():
    seen = []
    updates, losses = train_step(tiny("ed"), k_l=lambda outputs: seen.append(set(outputs)) or torch.zeros(()))
    assert [len(update.losses) for update in updates] == [2, 1]
    assert list(losses) == ["s_con", "s_adv", "s_ce"]
    assert seen == [{"z1", "x_hat"}]


def test_k_l_is_added_to_the_generators_loss_and_to_no_other():
    gan = tiny()
    (plain, _), (update, of_discriminator) = (train_step(gan, (2.0, 3.0), k_l=k_l)[0] for k_l in (None, k_l_of_z1))
    torch.testing.assert_close(update.loss, plain.loss + k_l_of_z1(forward(gan)(images())))
    assert of_discriminator.loss == train_step(gan, (2.0, 3.0))[0][1].loss


class Untouchable(nn.Module):
    def forward(self, x):
        raise AssertionError("nobody should call this")


@pytest.mark.parametrize("discriminator", [None, Untouchable()])
def test_without_losses_of_its_own_a_gan_is_trained_by_k_l_alone(discriminator):
    gan, seen = tiny(), []

    def k_l(outputs):
        seen.append(outputs)
        return k_l_of_z1(outputs)

    bare = Gan(gan.generator, gan.taps, discriminator)
    (update,), losses = train_step(bare, (0.0, 0.0), k_l=k_l, forward_pass=forward(gan))
    assert (update.network, losses) == ("generator", {})
    assert torch.equal(update.loss, k_l_of_z1(seen[0]))
    assert torch.equal(seen[0]["z2"], gan.generator(images())[2])
    assert seen[0]["z2"].requires_grad
    assert train_step(bare, (0.0, 0.0), forward_pass=forward(gan)) == ([], {})


def test_without_l_d_the_discriminator_is_not_updated():
    gan = tiny()
    both, _ = train_step(gan)
    (update,), losses = train_step(gan, (1.0, 0.0))
    assert update.network == "generator"
    assert torch.equal(update.loss, both[0].loss)
    assert "s_ce" not in losses


def test_without_l_g_the_discriminator_is_updated_and_the_generator_by_k_l_alone():
    gan = tiny()
    both, _ = train_step(gan)
    (update,), losses = train_step(gan, (0.0, 1.0))
    assert (update.network, list(losses)) == ("discriminator", ["s_ce"])
    assert torch.equal(update.loss, both[1].loss)
    seen = []
    first, second = train_step(gan, (0.0, 1.0), k_l=lambda outputs: seen.append(set(outputs)) or k_l_of_z1(outputs))[0]
    assert seen == [set(TAPS)]
    assert (first.network, first.losses) == ("generator", {})
    assert torch.equal(first.loss, k_l_of_z1(forward(gan)(images())))
    assert second.network == "discriminator"
    assert torch.equal(second.loss, both[1].loss)


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_losses_of_its_own_need_a_discriminator(weights):
    gan = tiny()
    with pytest.raises(KdganError, match="needs a discriminator; found none"):
        train_step(Gan(gan.generator, gan.taps), weights, forward_pass=forward(gan))


@pytest.mark.parametrize("name", ["w_con", "w_enc", "w_adv"])
@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_are_finite_and_at_least_0(name, weight):
    with pytest.raises(KdganError, match=f"got {name} = {weight:g}.* finite number ≥ 0"):
        GanomalyObjective(**{name: weight})
