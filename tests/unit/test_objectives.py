import copy

import numpy as np
import pytest
import torch
from torch import nn

from kdgan_compress.errors import KdganError
from kdgan_compress.gans import Architecture, build
from kdgan_compress.objectives import Distillation, GanomalyObjective
from kdgan_compress.taps import Taps

TAPS = ("z1", "x_hat", "z2")


def tiny(family="ede", norm="per_image"):
    gan = build(
        Architecture(family=family, channels=(2, 4), image_channels=3, image_size=16, latent_size=16, norm=norm)
    )
    for network in gan.modules().values():
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


@pytest.mark.parametrize("norm", ["per_image", "batch"])
@pytest.mark.parametrize("reduction", ["mean", "norm"])
@pytest.mark.parametrize("family", ["ed", "ede"])
def test_the_updates_are_ganomalys(family, reduction, norm):
    gan = tiny(family, norm)
    by_hand = ganomaly_by_hand(copy.deepcopy(gan), images(), (7, 3, 2), reduction)
    expected_terms, expected_losses, expected = by_hand
    objective = GanomalyObjective(w_con=7, w_enc=3, w_adv=2, reduction=reduction)
    terms, order = {}, []
    for update in objective.updates(forward(gan), gan.discriminator, images(), 1.0, 1.0):
        order.append(update.network)
        terms |= update.terms
        parameters = list(gan.modules()[update.network].parameters())
        update.loss.backward(inputs=parameters)
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
    objective = GanomalyObjective()
    plain = list(objective.updates(forward(gan), gan.discriminator, images(), 1.0, 1.0))
    with Taps(gan.generator, gan.taps) as taps:
        tapped = list(objective.updates(taps, gan.discriminator, images(), 1.0, 1.0))
    assert [update.loss for update in tapped] == [update.loss for update in plain]


def test_f_of_the_images_is_a_constant_in_l_g():
    gan, seen = tiny(), []

    def watched(x):
        features, logit = gan.discriminator(x)
        features.retain_grad()
        seen.append(features)
        return features, logit

    update = next(GanomalyObjective().updates(forward(gan), watched, images(), 1.0, 1.0))
    update.loss.backward()
    of_images, of_reconstructions = seen
    assert of_images.grad is None
    assert of_reconstructions.grad.abs().sum() > 0


def test_the_discriminators_update_leaves_the_generator_without_a_gradient():
    gan = tiny()
    _, update = GanomalyObjective().updates(forward(gan), gan.discriminator, images(), 1.0, 1.0)
    update.loss.backward()
    assert all(parameter.grad is None for parameter in gan.generator.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in gan.discriminator.parameters())


def test_one_batch_runs_the_generator_once():
    gan, calls = tiny(), []
    gan.generator.register_forward_hook(lambda *_: calls.append(1))
    list(GanomalyObjective().updates(forward(gan), gan.discriminator, images(), 1.0, 1.0))
    assert len(calls) == 1


def test_coefficients_scale_the_losses_and_not_the_terms():
    gan = tiny()
    plain, scaled = (
        list(GanomalyObjective().updates(forward(gan), gan.discriminator, images(), *weights))
        for weights in ((1.0, 1.0), (3.0, 0.25))
    )
    for one, other, factor in zip(plain, scaled, (3, 0.25), strict=True):
        torch.testing.assert_close(other.loss, factor * one.loss)
        assert one.terms == other.terms


def test_default_weights_are_the_papers():
    gan = tiny()
    update, _ = GanomalyObjective().updates(forward(gan), gan.discriminator, images(), 1.0, 1.0)
    expected = 10 * update.terms["s_con"] + update.terms["s_enc"] + update.terms["s_adv"]
    torch.testing.assert_close(update.loss, expected)


def test_a_family_without_z2_has_no_s_enc():
    gan = tiny("ed")
    updates = list(GanomalyObjective().updates(forward(gan), gan.discriminator, images(), 1.0, 1.0))
    assert [set(update.terms) for update in updates] == [{"s_con", "s_adv"}, {"s_ce"}]
    assert set(updates[0].outputs) == {"z1", "x_hat"}


class Untouchable(nn.Module):
    def forward(self, x):
        raise AssertionError("nobody should call this")


@pytest.mark.parametrize("discriminator", [None, Untouchable()])
def test_without_losses_of_its_own_a_gan_is_only_run(discriminator):
    gan = tiny()
    (update,) = GanomalyObjective().updates(forward(gan), discriminator, images(), 0.0, 0.0)
    assert (update.network, update.loss, update.terms) == ("generator", None, {})
    assert torch.equal(update.outputs["z2"], gan.generator(images())[2])
    assert update.outputs["z2"].requires_grad


def test_without_l_d_the_discriminator_is_not_moved():
    gan = tiny()
    both = list(GanomalyObjective().updates(forward(gan), gan.discriminator, images(), 1.0, 1.0))
    (update,) = GanomalyObjective().updates(forward(gan), gan.discriminator, images(), 1.0, 0.0)
    assert update.network == "generator"
    assert torch.equal(update.loss, both[0].loss)


def test_without_l_g_the_generator_is_run_and_the_discriminator_moved():
    gan = tiny()
    both = list(GanomalyObjective().updates(forward(gan), gan.discriminator, images(), 1.0, 1.0))
    first, second = GanomalyObjective().updates(forward(gan), gan.discriminator, images(), 0.0, 1.0)
    assert (first.network, first.loss, first.terms) == ("generator", None, {})
    assert set(first.outputs) == set(TAPS)
    assert second.network == "discriminator"
    assert torch.equal(second.loss, both[1].loss)
    assert second.outputs is None  # K_l has no business with the discriminator


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_own_losses_want_a_discriminator(weights):
    with pytest.raises(KdganError, match="must have a discriminator; found none"):
        list(GanomalyObjective().updates(forward(tiny()), None, images(), *weights))


# Distillation


def outputs(seed, names=TAPS):
    shapes = {"z1": (3, 5), "x_hat": (3, 2, 4, 4), "z2": (3, 5)}
    return {name: noise(*shapes[name], seed=seed + i).requires_grad_() for i, name in enumerate(names)}


def distances_by_numpy(student, teacher, reduction):
    terms = {}
    for tap, name in zip(TAPS, ("k1", "kx", "k2"), strict=True):
        if tap not in student or tap not in teacher:
            continue
        rows = (student[tap].detach().numpy() - teacher[tap].detach().numpy()).reshape(3, -1)
        order = 1 if tap == "x_hat" else 2
        if reduction == "norm":
            terms[name] = np.mean([np.linalg.norm(row, order) for row in rows])
        else:
            terms[name] = np.mean([np.abs(row) ** order for row in rows])
    return terms


@pytest.mark.parametrize("reduction", ["mean", "norm"])
def test_k_l_is_the_weighted_sum_of_equation_7(reduction):
    student, teacher = outputs(0), outputs(10)
    loss, terms = Distillation(w1=2, wx=3, w2=5, reduction=reduction).loss(student, teacher)
    expected = distances_by_numpy(student, teacher, reduction)
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(2 * expected["k1"] + 3 * expected["kx"] + 5 * expected["k2"])


def test_k_l_moves_the_student_and_never_the_teacher():
    student, teacher = outputs(0), outputs(10)
    loss, _ = Distillation(w1=2, wx=3, w2=5).loss(student, teacher)
    loss.backward()
    for name, weight in (("z1", 2), ("z2", 5)):
        expected = weight * 2 * (student[name] - teacher[name]) / student[name].numel()
        torch.testing.assert_close(student[name].grad, expected.detach())
    expected = 3 * (student["x_hat"] - teacher["x_hat"]).sign() / student["x_hat"].numel()
    torch.testing.assert_close(student["x_hat"].grad, expected.detach())
    assert all(output.grad is None for output in teacher.values())


def test_k_l_between_networks_leaves_the_teacher_without_a_gradient():
    teacher, student = tiny(), tiny()
    for parameter in student.generator.parameters():
        parameter.data *= 0.7
    loss, _ = Distillation().loss(forward(student)(images()), forward(teacher)(images()))
    loss.backward()
    assert all(parameter.grad is None for parameter in teacher.generator.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in student.generator.parameters())


def test_k_l_of_a_network_with_itself_is_zero():
    outputs_of_it = outputs(0)
    loss, terms = Distillation().loss(outputs_of_it, outputs_of_it)
    assert loss == 0
    assert set(terms) == {"k1", "kx", "k2"}


@pytest.mark.parametrize(
    ("ours", "theirs", "names"),
    [
        (TAPS, ("z1", "x_hat"), {"k1", "kx"}),
        (("z1", "x_hat"), TAPS, {"k1", "kx"}),
        (("x_hat",), TAPS, {"kx"}),
        (("z2", "x_hat"), ("z1", "z2"), {"k2"}),
    ],
)
def test_only_taps_that_both_have_count(ours, theirs, names):
    student, teacher = outputs(0, ours), outputs(10, theirs)
    loss, terms = Distillation(w1=2, wx=3, w2=5).loss(student, teacher)
    expected = distances_by_numpy(student, teacher, "mean")
    assert terms.keys() == expected.keys() == names
    weights = {"k1": 2, "kx": 3, "k2": 5}
    assert loss.item() == pytest.approx(sum(weights[name] * value for name, value in expected.items()))


@pytest.mark.parametrize(("ours", "theirs"), [((), TAPS), (("z1",), ("x_hat", "z2"))])
def test_no_tap_in_common_is_an_error(ours, theirs):
    with pytest.raises(KdganError, match=r"a tap of z1, x_hat or z2 in common; got \['x_hat'"):
        Distillation().loss(outputs(0, ours), outputs(10, theirs))


def test_latents_of_unlike_length_are_an_error():
    student, teacher = {"z1": torch.zeros(3, 16)}, {"z1": torch.zeros(3, 24)}
    with pytest.raises(KdganError, match=r"one shape; got \(3, 16\) and \(3, 24\)"):
        Distillation().loss(student, teacher)


def test_a_weight_of_zero_leaves_its_term_in_the_log_only():
    student, teacher = outputs(0), outputs(10)
    loss, terms = Distillation(w1=0, wx=1, w2=0).loss(student, teacher)
    assert loss == terms["kx"]
    assert terms["k1"] > 0
