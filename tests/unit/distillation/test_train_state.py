"""The EMA against NumPy, and what a training state keeps apart, saves and restores."""

import copy
import io

import numpy as np
import pytest
import torch

from kdgan_compress.distillation.hooks import Connectors
from kdgan_compress.distillation.train_state import TrainState, frozen
from kdgan_compress.errors import KdganError
from kdgan_compress.gans import Architecture, build
from kdgan_compress.gans.cvgad import CvgadObjective
from kdgan_compress.gans.ede import GanomalyObjective

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


def update(state, network, loss, learning_rate=0.01, **kwargs):
    state.set_learning_rate(learning_rate)
    state.update(network, loss, **kwargs)


def numpy_weights(network):
    return {name: parameter.detach().numpy().copy() for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("decay", [0.05, 0.25, 0.99])
def test_the_ema_is_numpys(decay):
    state = TrainState(make_gan(), (0.5, 0.99), decay)
    state.begin_stage(BOTH)
    expected = None
    for step in range(6):
        update(state, "generator", generator_loss(state.gan, step))
        now = numpy_weights(state.gan.generator)
        d = min(decay, step / (step + 10))
        expected = now if expected is None else {n: d * expected[n] + (1 - d) * now[n] for n in now}
    average = numpy_weights(state.ema_generator)
    for name, weight in expected.items():
        np.testing.assert_allclose(average[name], weight, rtol=1e-5, atol=1e-7)
    assert np.abs(average["encoder.head.weight"] - now["encoder.head.weight"]).max() > 1e-4


def test_decay_0_is_no_ema():
    state = TrainState(make_gan(), (0.5, 0.99), 0.0)
    state.begin_stage(BOTH)
    update(state, "generator", generator_loss(state.gan))
    assert state.ema_generator is state.gan.generator
    assert "ema" not in state.state_dict()["networks"]


def test_a_gan_trains_by_ganomalys_losses_by_default():
    assert TrainState(make_gan()).objective == GanomalyObjective()
    objective = CvgadObjective()
    assert TrainState(make_gan(), objective=objective).objective is objective


def test_before_any_stage_the_generator_itself_is_scored():
    state = TrainState(make_gan(), (0.5, 0.99), 0.9)
    assert state.ema_generator is state.gan.generator


def test_the_discriminators_update_leaves_the_ema():
    state = TrainState(make_gan(), (0.5, 0.99), 0.9)
    state.begin_stage(BOTH)
    update(state, "generator", generator_loss(state.gan))
    before = numpy_weights(state.ema_generator)
    update(state, "discriminator", discriminator_loss(state.gan))
    for name, weight in numpy_weights(state.ema_generator).items():
        np.testing.assert_array_equal(weight, before[name])
    assert state.state_dict()["num_averaged"] == 1


def test_the_ema_has_batch_norms_buffers_and_is_in_evaluation_mode():
    state = TrainState(make_gan("batch"), (0.5, 0.99), 0.9)
    state.begin_stage(BOTH)
    for step in range(3):
        update(state, "generator", generator_loss(state.gan, step))
    buffers, expected = dict(state.ema_generator.named_buffers()), dict(state.gan.generator.named_buffers())
    assert any("running_mean" in name for name in buffers)
    torch.testing.assert_close(buffers, expected, rtol=0, atol=0)
    assert int(buffers["encoder.features.1.num_batches_tracked"]) == 3
    assert not any(module.training for module in state.ema_generator.modules())


def test_an_update_changes_one_network_only():
    state = TrainState(make_gan(), (0.5, 0.99), 0.9)
    state.begin_stage(BOTH)
    gan = state.gan
    before = {name: numpy_weights(network) for name, network in gan.networks().items()}
    features, _ = gan.discriminator(gan.generator(make_batch())[1])
    update(state, "generator", features.square().mean() + generator_loss(gan))
    assert all(p.grad is None for p in gan.discriminator.parameters())
    for name, weight in numpy_weights(gan.discriminator).items():
        np.testing.assert_array_equal(weight, before["discriminator"][name])
    changed = numpy_weights(gan.generator)
    assert all((weight != before["generator"][name]).any() for name, weight in changed.items())
    update(state, "discriminator", discriminator_loss(gan))
    for name, weight in numpy_weights(gan.generator).items():
        np.testing.assert_array_equal(weight, changed[name])


def test_the_discriminators_update_changes_it_only_though_its_loss_reaches_the_generator():
    state = TrainState(make_gan(), (0.5, 0.99), 0.9)
    state.begin_stage(BOTH)
    gan = state.gan
    before = {name: numpy_weights(network) for name, network in gan.networks().items()}
    _, logit = gan.discriminator(gan.generator(make_batch())[1])
    update(state, "discriminator", logit.square().mean())
    assert all(p.grad is None for p in gan.generator.parameters())
    for name, weight in numpy_weights(gan.generator).items():
        np.testing.assert_array_equal(weight, before["generator"][name])
    assert all(
        (weight != before["discriminator"][name]).any() for name, weight in numpy_weights(gan.discriminator).items()
    )


def test_two_updates_may_use_one_graph():
    state = TrainState(make_gan(), (0.5, 0.99), 0.9)
    state.begin_stage(BOTH)
    by_hand = copy.deepcopy(state.gan.discriminator)
    features, logit = state.gan.discriminator(x_hat := state.gan.generator(make_batch())[1])
    gradients = torch.autograd.grad(by_hand(x_hat.detach())[1].square().mean(), list(by_hand.parameters()))
    update(state, "generator", features.square().mean(), retain_graph=True)
    update(state, "discriminator", logit.square().mean())
    for parameter, gradient in zip(state.gan.discriminator.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_adams_first_step_is_the_learning_rate_against_the_gradients_sign():
    state = TrainState(make_gan(), (0.5, 0.99), 0.0)
    state.begin_stage(("generator",))
    head = state.gan.generator.encoder.head.weight
    before = head.detach().clone()
    (gradient,) = torch.autograd.grad(generator_loss(state.gan), head)
    update(state, "generator", generator_loss(state.gan))
    large = gradient.abs() > 1e-5  # far above Adam's epsilon
    assert large.any()
    torch.testing.assert_close((head - before)[large], -0.01 * gradient.sign()[large], rtol=2e-3, atol=1e-6)


def test_gradients_do_not_accumulate():
    state = TrainState(make_gan(), (0.5, 0.99), 0.0)
    state.begin_stage(("generator",))
    head = state.gan.generator.encoder.head.weight
    for _ in range(2):
        loss = generator_loss(state.gan)
        (expected,) = torch.autograd.grad(loss, head, retain_graph=True)
        update(state, "generator", loss, learning_rate=0.0)
        torch.testing.assert_close(head.grad, expected, rtol=0, atol=0)


def test_connectors_are_trained_by_the_generators_optimiser():
    state = TrainState(make_gan(), (0.5, 0.99), 0.9)
    outputs = {"z1": torch.ones(2, 3), "x_hat": torch.ones(2, 1, 4, 4)}
    assert state.connect(outputs) is outputs
    state.connectors = Connectors(outputs, {"z1": torch.zeros(2, 5), "x_hat": torch.zeros(2, 1, 4, 4)})
    state.begin_stage(BOTH)
    weight = state.connectors.maps["z1"].weight
    before = weight.detach().clone()
    connected = state.connect(outputs)
    torch.testing.assert_close(connected["z1"], torch.ones(2, 3) @ before.T)
    assert connected["x_hat"] is outputs["x_hat"]
    update(state, "generator", connected["z1"].sum() + generator_loss(state.gan))
    torch.testing.assert_close(weight, before - 0.01)  # every gradient is 2
    assert "connectors" in state.state_dict()["networks"]


def test_a_stage_starts_with_new_optimisers_and_a_new_ema():
    state = TrainState(make_gan(), (0.5, 0.99), 0.9)
    state.begin_stage(BOTH)
    update(state, "generator", generator_loss(state.gan))
    state.begin_stage(("generator",))
    saved = state.state_dict()
    assert set(saved["optimizers"]) == {"generator"}
    assert not saved["optimizers"]["generator"]["state"]
    assert saved["num_averaged"] == 0
    update(state, "generator", generator_loss(state.gan))
    torch.testing.assert_close(state.ema_generator.state_dict(), state.gan.generator.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_saved_state_continues_bit_for_bit(norm):
    state = TrainState(make_gan(norm), (0.5, 0.99), 0.9)
    state.begin_stage(BOTH)
    update(state, "generator", generator_loss(state.gan))
    update(state, "discriminator", discriminator_loss(state.gan))
    file = io.BytesIO()
    torch.save(state.state_dict(), file)
    file.seek(0)
    other = TrainState(make_gan(norm, seed=7), (0.5, 0.99), 0.9)
    other.begin_stage(BOTH)
    other.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(other.state_dict(), state.state_dict(), rtol=0, atol=0)
    for each in (state, other):
        update(each, "generator", generator_loss(each.gan, 1))
        update(each, "discriminator", discriminator_loss(each.gan))
    torch.testing.assert_close(other.state_dict(), state.state_dict(), rtol=0, atol=0)


def test_frozen_freezes_a_gan_and_restores_it_after_an_error():
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


def test_forward_needs_hooks_and_returns_the_taps():
    state = TrainState(make_gan())
    with pytest.raises(KdganError, match="no hooks; forward was called"):
        state.forward(make_batch())
    with state.hooked(state.gan.taps):
        outputs = state.forward(make_batch())
    for output, expected in zip(outputs.values(), state.gan.generator(make_batch()), strict=True):
        assert torch.equal(output, expected)
    with pytest.raises(KdganError, match="no hooks"):
        state.forward(make_batch())


def test_reduce_is_the_mean():
    assert TrainState(make_gan()).reduce(torch.tensor([1.0, 2.0, 6.0])) == 3


def test_the_optimiser_is_torchs_adam_unless_another_is_given():
    def make_sgd(parameters, lr, betas):
        return torch.optim.SGD(parameters, lr=lr, momentum=betas[0])

    for changes, kind in (({}, torch.optim.Adam), ({"make_optimizer": make_sgd}, torch.optim.SGD)):
        state = TrainState(make_gan(), (0.3, 0.9), **changes)
        state.begin_stage(BOTH)
        assert {type(optimizer) for optimizer in state.optimizers.values()} == {kind}
        head = state.gan.generator.encoder.head.weight
        before = head.detach().clone()
        update(state, "generator", generator_loss(state.gan))
        assert not torch.equal(head, before)
    assert TrainState(make_gan(), (0.3, 0.9)).betas == (0.3, 0.9)


def test_a_state_is_finite_until_a_weight_is_not():
    state = TrainState(make_gan())
    assert state.is_finite()
    state.gan.discriminator.encoder.head.weight.data[0, 0, 0, 0] = torch.inf
    assert not state.is_finite()
