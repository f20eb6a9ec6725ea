"""The averaged weights against NumPy, and what a learner keeps apart, carries along and gives back."""

import copy
import io

import numpy as np
import pytest
import torch
from kdgan_compress.gans.cvgad_objective import CvgadObjective
from kdgan_compress.gans.ganomaly_objective import GanomalyObjective

from kdgan_compress.distillation.hooks import Connectors
from kdgan_compress.distillation.train_state import TrainState, frozen
from kdgan_compress.errors import KdganError
from kdgan_compress.gans import Architecture, build

BOTH = ("generator", "discriminator")


def make_gan(norm="instance", seed=0):
    return build(Architecture(channels=(1, 2, 4), latent_size=16, norm=norm), seed)


def make_batch(seed=0):
    return torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def generator_loss(gan, seed=0):
    x = make_batch(seed)
    z1, x_hat, z2 = gan.generator(x)
    return (x - x_hat).abs().mean() + (z1 - z2).square().mean()


def discriminator_loss(gan):
    return gan.discriminator(make_batch())[1].square().mean()


def numpy_weights(network):
    return {name: parameter.detach().numpy().copy() for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("decay", [0.05, 0.25, 0.99])
def test_the_average_is_numpys(decay):
    learner = TrainState(make_gan(), (0.5, 0.99), decay)
    learner.begin_stage(BOTH)
    expected = None
    for step in range(6):
        learner.step("generator", generator_loss(learner.gan, step), 0.01)
        now = numpy_weights(learner.gan.generator)
        d = min(decay, step / (step + 10))
        expected = now if expected is None else {n: d * expected[n] + (1 - d) * now[n] for n in now}
    average = numpy_weights(learner.ema_generator)
    for name, weight in expected.items():
        np.testing.assert_allclose(average[name], weight, rtol=1e-5, atol=1e-7)
    assert np.abs(average["encoder.head.weight"] - now["encoder.head.weight"]).max() > 1e-4


def test_decay_0_is_no_average():
    learner = TrainState(make_gan(), (0.5, 0.99), 0.0)
    learner.begin_stage(BOTH)
    learner.step("generator", generator_loss(learner.gan), 0.01)
    assert learner.ema_generator is learner.gan.generator
    assert "average" not in learner.state_dict()["networks"]


def test_a_gan_trains_as_ganomaly_unless_told():
    assert TrainState(make_gan()).objective == GanomalyObjective()
    objective = CvgadObjective()
    assert TrainState(make_gan(), objective=objective).objective is objective


def test_before_any_stage_the_generator_itself_is_scored():
    learner = TrainState(make_gan(), (0.5, 0.99), 0.9)
    assert learner.ema_generator is learner.gan.generator


def test_the_discriminators_step_leaves_the_average():
    learner = TrainState(make_gan(), (0.5, 0.99), 0.9)
    learner.begin_stage(BOTH)
    learner.step("generator", generator_loss(learner.gan), 0.01)
    before = numpy_weights(learner.ema_generator)
    learner.step("discriminator", discriminator_loss(learner.gan), 0.01)
    for name, weight in numpy_weights(learner.ema_generator).items():
        np.testing.assert_array_equal(weight, before[name])
    assert learner.state_dict()["num_averaged"].tolist() == [1]


def test_the_average_carries_batch_norms_buffers_and_evaluates():
    learner = TrainState(make_gan("batch"), (0.5, 0.99), 0.9)
    learner.begin_stage(BOTH)
    for step in range(3):
        learner.step("generator", generator_loss(learner.gan, step), 0.01)
    ours, theirs = dict(learner.ema_generator.named_buffers()), dict(learner.gan.generator.named_buffers())
    assert any("running_mean" in name for name in ours)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert int(ours["encoder.features.1.num_batches_tracked"]) == 3
    assert not any(module.training for module in learner.ema_generator.modules())


def test_a_step_moves_one_network_alone():
    learner = TrainState(make_gan(), (0.5, 0.99), 0.9)
    learner.begin_stage(BOTH)
    gan = learner.gan
    before = {name: numpy_weights(network) for name, network in gan.networks().items()}
    features, _ = gan.discriminator(gan.generator(make_batch())[1])
    learner.step("generator", features.square().mean() + generator_loss(gan), 0.01)
    assert all(p.grad is None for p in gan.discriminator.parameters())
    for name, weight in numpy_weights(gan.discriminator).items():
        np.testing.assert_array_equal(weight, before["discriminator"][name])
    moved = numpy_weights(gan.generator)
    assert all((weight != before["generator"][name]).any() for name, weight in moved.items())
    learner.step("discriminator", discriminator_loss(gan), 0.01)
    for name, weight in numpy_weights(gan.generator).items():
        np.testing.assert_array_equal(weight, moved[name])


def test_the_discriminators_step_moves_it_alone_though_its_loss_goes_back_to_the_generator():
    learner = TrainState(make_gan(), (0.5, 0.99), 0.9)
    learner.begin_stage(BOTH)
    gan = learner.gan
    before = {name: numpy_weights(network) for name, network in gan.networks().items()}
    _, logit = gan.discriminator(gan.generator(make_batch())[1])
    learner.step("discriminator", logit.square().mean(), 0.01)
    assert all(p.grad is None for p in gan.generator.parameters())
    for name, weight in numpy_weights(gan.generator).items():
        np.testing.assert_array_equal(weight, before["generator"][name])
    assert all(
        (weight != before["discriminator"][name]).any() for name, weight in numpy_weights(gan.discriminator).items()
    )


def test_two_steps_may_go_back_through_one_graph():
    learner = TrainState(make_gan(), (0.5, 0.99), 0.9)
    learner.begin_stage(BOTH)
    by_hand = copy.deepcopy(learner.gan.discriminator)
    features, logit = learner.gan.discriminator(x_hat := learner.gan.generator(make_batch())[1])
    gradients = torch.autograd.grad(by_hand(x_hat.detach())[1].square().mean(), list(by_hand.parameters()))
    learner.step("generator", features.square().mean(), 0.01, keeps_graph=True)
    learner.step("discriminator", logit.square().mean(), 0.01)
    for parameter, gradient in zip(learner.gan.discriminator.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_adams_first_step_is_the_rate_against_the_gradients_sign():
    learner = TrainState(make_gan(), (0.5, 0.99), 0.0)
    learner.begin_stage(("generator",))
    head = learner.gan.generator.encoder.head.weight
    before = head.detach().clone()
    (gradient,) = torch.autograd.grad(generator_loss(learner.gan), head)
    learner.step("generator", generator_loss(learner.gan), 0.01)
    large = gradient.abs() > 1e-5  # far above Adam's epsilon
    assert large.any()
    torch.testing.assert_close((head - before)[large], -0.01 * gradient.sign()[large], rtol=2e-3, atol=1e-6)


def test_gradients_do_not_pile_up():
    learner = TrainState(make_gan(), (0.5, 0.99), 0.0)
    learner.begin_stage(("generator",))
    head = learner.gan.generator.encoder.head.weight
    for _ in range(2):
        loss = generator_loss(learner.gan)
        (expected,) = torch.autograd.grad(loss, head, retain_graph=True)
        learner.step("generator", loss, 0.0)
        torch.testing.assert_close(head.grad, expected, rtol=0, atol=0)


def test_connectors_join_the_generators_optimiser_and_connect():
    learner = TrainState(make_gan(), (0.5, 0.99), 0.9)
    outputs = {"z1": torch.ones(2, 3), "x_hat": torch.ones(2, 1, 4, 4)}
    assert learner.connect(outputs) is outputs
    learner.connectors = Connectors(outputs, {"z1": torch.zeros(2, 5), "x_hat": torch.zeros(2, 1, 4, 4)})
    learner.begin_stage(BOTH)
    weight = learner.connectors.maps["z1"].weight
    before = weight.detach().clone()
    connected = learner.connect(outputs)
    torch.testing.assert_close(connected["z1"], torch.ones(2, 3) @ before.T)
    assert connected["x_hat"] is outputs["x_hat"]
    learner.step("generator", connected["z1"].sum() + generator_loss(learner.gan), 0.01)
    torch.testing.assert_close(weight, before - 0.01)  # every gradient is 2
    assert "connectors" in learner.state_dict()["networks"]


def test_a_stage_starts_with_new_optimisers_and_a_new_average():
    learner = TrainState(make_gan(), (0.5, 0.99), 0.9)
    learner.begin_stage(BOTH)
    learner.step("generator", generator_loss(learner.gan), 0.01)
    learner.begin_stage(("generator",))
    state = learner.state_dict()
    assert set(state["optimizers"]) == {"generator"}
    assert not any(part.any() for parts in state["optimizers"]["generator"].values() for part in parts)
    assert state["num_averaged"].tolist() == [0]
    learner.step("generator", generator_loss(learner.gan), 0.01)
    torch.testing.assert_close(learner.ema_generator.state_dict(), learner.gan.generator.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_saved_learner_goes_on_bit_for_bit(norm):
    learner = TrainState(make_gan(norm), (0.5, 0.99), 0.9)
    learner.begin_stage(BOTH)
    learner.step("generator", generator_loss(learner.gan), 0.01)
    learner.step("discriminator", discriminator_loss(learner.gan), 0.01)
    file = io.BytesIO()
    torch.save(learner.state_dict(), file)
    file.seek(0)
    other = TrainState(make_gan(norm, seed=7), (0.5, 0.99), 0.9)
    other.begin_stage(BOTH)
    other.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(other.state_dict(), learner.state_dict(), rtol=0, atol=0)
    for each in (learner, other):
        each.step("generator", generator_loss(each.gan, 1), 0.01)
        each.step("discriminator", discriminator_loss(each.gan), 0.01)
    torch.testing.assert_close(other.state_dict(), learner.state_dict(), rtol=0, atol=0)


def test_frozen_holds_a_gan_and_lets_it_go_after_an_error():
    gan = make_gan("batch")
    gan.discriminator.eval()
    gan.generator.decoder.eval()
    gan.generator.encoder.head.weight.requires_grad_(False)
    before = copy.deepcopy(gan.generator.state_dict())
    modules = [module for network in gan.networks().values() for module in network.modules()]
    parameters = [parameter for network in gan.networks().values() for parameter in network.parameters()]
    modes, required = [m.training for m in modules], [p.requires_grad for p in parameters]
    with frozen(gan):
        z1, _, _ = gan.generator(make_batch())
        assert not z1.requires_grad
        assert not any(m.training for m in modules)
    with pytest.raises(KdganError, match="channels"), frozen(gan):
        gan.generator(torch.zeros(1, 2, 32, 32))
    torch.testing.assert_close(gan.generator.state_dict(), before, rtol=0, atol=0)
    assert [m.training for m in modules] == modes
    assert [p.requires_grad for p in parameters] == required
