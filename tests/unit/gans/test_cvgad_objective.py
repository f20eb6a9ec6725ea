"""CVGAD's updates against Algorithm 1 as a plain loop: losses, optimisers and order written out once more."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from recording_state import RecordingState
from torch import nn
from torch.nn.functional import softplus

from kdgan_compress.distillation.hooks import FeatureHooks
from kdgan_compress.distillation.loss import DistillationLoss
from kdgan_compress.distillation.policies import FROM_SCRATCH, STRUCTURES, LossSet, Stage
from kdgan_compress.distillation.scheduler import ProgressiveScheduler, TrainingSettings
from kdgan_compress.distillation.train_state import TrainState
from kdgan_compress.distillation.trainer import epoch_order, train_schedulers
from kdgan_compress.errors import KdganError
from kdgan_compress.gans import Architecture, Gan, build, cvgad
from kdgan_compress.gans.cvgad import CvgadObjective
from kdgan_compress.losses import outlier_codes

WEIGHTS = {
    "w_ssim": 3.0,
    "w_l1": 2.0,
    "w_latent": 0.7,
    "w_categorical": 0.3,
    "w_mutual": 1.5,
    "w_adv": 0.9,
    "w_negative": 0.6,
    "w_penalty": 4.0,
    "negative_distance": 1.2,
}
RECONSTRUCTION, LATENT = ("generator", ("ssim", "l1")), ("generator", ("latent", "categorical"))
NEGATIVE, MUTUAL = ("generator", ("negative",)), ("generator", ("mutual",))
CRITIC, ADVERSARIAL = ("discriminator", ("wasserstein", "penalty")), ("generator", ("adversarial",))
K_L = ("generator", ())
"""An update by K_l alone."""


pytestmark = pytest.mark.usefixtures("one_thread")


def tiny(seed=1, **changes):
    return build(
        Architecture(
            **{"family": "cvgad", "channels": (2, 4), "image_size": 16, "latent_size": 8, "num_clusters": 2} | changes
        ),
        seed,
    )


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def draw(mu, log_var):
    return torch.distributions.Normal(mu, (log_var / 2).exp()).rsample()


def ssim(a, b):
    """SSIM of each pair, its windows unfolded."""
    line = torch.exp(-((torch.arange(11, dtype=a.dtype) - 5) ** 2) / (2 * 1.5**2))
    line = line / line.sum()
    windows = [((x + 1) / 2).unfold(2, 11, 1).unfold(3, 11, 1) for x in (a, b)]
    e, f, ee, ff, ef = (
        torch.einsum("bcijkl,k,l->bcij", x, line, line)
        for x in (*windows, windows[0] ** 2, windows[1] ** 2, windows[0] * windows[1])
    )
    contrast = (2 * (ef - e * f) + 0.03**2) / (ee - e**2 + ff - f**2 + 0.03**2)
    return ((2 * e * f + 0.01**2) / (e**2 + f**2 + 0.01**2) * contrast).mean((1, 2, 3))


class Plain:
    """A cvgad GAN that is trained by Algorithm 1, line by line."""

    def __init__(self, gan, weight_g, weight_d, threshold, betas):
        self.gan, self.weight_g, self.weight_d, self.threshold = gan, weight_g, weight_d, threshold
        self.adam = {name: torch.optim.Adam(net.parameters(), betas=betas) for name, net in gan.networks().items()}
        self.count = 0
        self.log = []

    def descend(self, network, loss, rate, name):
        (group,) = self.adam[network].param_groups
        group["lr"] = rate
        gradients = torch.autograd.grad(loss, group["params"], allow_unused=True)
        for parameter, gradient in zip(group["params"], gradients, strict=True):
            parameter.grad = gradient
        self.adam[network].step()
        self.log.append((self.count, name))

    def reconstruct(self, x):
        return self.gan.generator.decoder(draw(*self.gan.generator.encoder(x)))

    def distance(self, x, x_hat):
        loss = -torch.log(ssim(x, x_hat).clamp(min=1e-3)).mean() * WEIGHTS["w_ssim"]
        return loss + WEIGHTS["w_l1"] * (x - x_hat).abs().mean()

    def step(self, x, rate, k_l=None):
        generator, critic = self.gan.generator, self.gan.discriminator
        w, g, num = WEIGHTS, self.weight_g, len(x)
        extra = 0.0 if k_l is None else k_l(generator)
        trains = g > 0 or self.weight_d > 0
        if trains:
            x_hat = self.reconstruct(x)
        if trains and self.count <= 4 and self.weight_d > 0:
            mix = torch.rand(num).view(-1, 1, 1, 1)
            mix = (mix * x + (1 - mix) * x_hat).detach().requires_grad_()
            slopes = torch.autograd.grad(critic(mix).sum(), mix, create_graph=True)[0].flatten(1).norm(dim=1)
            wasserstein = critic(x_hat.detach()).mean() - critic(x).mean()
            loss = wasserstein + w["w_penalty"] * ((slopes - 1) ** 2).mean()
            self.descend("discriminator", self.weight_d * loss, rate, "critic")
        if self.count == 4 or g == 0:
            if k_l is not None:
                self.descend("generator", extra, rate, "k_l")
        elif self.count == 5:
            self.descend("generator", extra - g * w["w_adv"] * critic(x_hat).mean(), rate, "adversarial")
        else:
            self.descend("generator", extra + g * self.distance(x, x_hat), rate, "reconstruction")

            mu, log_var = generator.encoder(x)
            p = torch.softmax(generator.classifier(draw(mu, log_var)), 1)
            latent = 0.0
            for y, mean in enumerate(generator.means):
                divergence = (log_var.exp() + (mu - mean) ** 2 - 1 - log_var).mean(1) / 2
                latent = latent + (p[:, y] * divergence).mean()
            categorical = (p * torch.log(len(generator.means) * p)).sum(1).mean()
            loss = w["w_latent"] * latent + w["w_categorical"] * categorical
            self.descend("generator", g * loss, rate, "latent")

            if latent < self.threshold:
                outliers = self.draw_outliers(num)
                if len(outliers) > 0:
                    bad = self.reconstruct(outliers)
                    loss = w["w_ssim"] * ssim(outliers, bad).mean() - w["w_l1"] * (outliers - bad).abs().mean()
                    self.descend("generator", g * w["w_negative"] * loss, rate, "negative")

            if num > 1:
                features = generator.encoder.features(x)
                z = draw(*generator.encoder(x))
                other = torch.cat([z[-1:], z[:-1]])
                fd = generator.feature_discriminator
                loss = softplus(-fd(features, z)).mean() + softplus(fd(features, other)).mean()
                self.descend("generator", g * w["w_mutual"] * loss, rate, "mutual")

            self.descend("generator", g * self.distance(x, self.reconstruct(x)), rate, "reconstruction")
        self.count = 0 if self.count == 5 else self.count + 1

    @torch.no_grad()
    def draw_outliers(self, num):
        means, distance = self.gan.generator.means, WEIGHTS["negative_distance"]
        chosen = torch.randint(len(means), (num,))
        directions = torch.randn(num, means.shape[1])
        lengths = torch.empty(num, 1).uniform_(1, 1.5)
        codes = []
        for mean, direction, length in zip(means[chosen], directions, lengths, strict=True):
            code = mean + distance * length * direction / (direction**2).mean() ** 0.5
            if all(((code - other) ** 2).mean() ** 0.5 > distance for other in means):
                codes.append(code)
        return self.gan.generator.decoder(torch.stack(codes)) if codes else torch.empty(0)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("loss_set", "threshold"),
    [
        (FROM_SCRATCH, 1e9),
        (FROM_SCRATCH, 0.0),
        (FROM_SCRATCH, 0.27),
        (LossSet(mu=0.3, nu=2), 0.27),
        (LossSet(mu=1), 0.3),
        (STRUCTURES[2], 0.28),
        (LossSet(nu=1, lam=0.5), 1.0),
        (STRUCTURES[1], 1.0),
    ],
    ids=[
        "always negative",
        "never negative",
        "alone",
        "fractions",
        "no critic",
        "structure 2",
        "no L_g",
        "structure 1",
    ],
)
def test_a_stage_is_algorithm_1_written_by_hand(loss_set, threshold):
    betas, rate, epochs = (0.5, 0.999), 4e-3, 5
    student, teacher = tiny(1), tiny(2)
    plain = Plain(copy.deepcopy(student), loss_set.mu, loss_set.nu, threshold, betas)
    images = torch.randint(0, 256, (9, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    state = TrainState(student, betas, 0.0, CvgadObjective(**WEIGHTS, latent_threshold=threshold, distance="mean"))
    distilled = (TrainState(teacher), DistillationLoss(w1=4, wx=5)) if loss_set.lam > 0 else (None, None)
    stage = Stage("x", loss_set, epochs, rate)
    torch.manual_seed(7)
    scheduler = ProgressiveScheduler([stage], state, images, *distilled, settings=TrainingSettings(4, seed=3))
    records = list(train_schedulers([scheduler]))

    torch.manual_seed(7)
    batches = [
        images[chosen].double() / 127.5 - 1  # of 4, 4 and 1
        for epoch in range(1, epochs + 1)
        for chosen in epoch_order(9, 3, 0, epoch).split(4)
    ]
    for step, x in enumerate(batches):

        def k_l(generator, x=x):
            (mu, x_hat), (mu_t, x_hat_t) = generator(x), teacher.generator(x)
            return loss_set.lam * (4 * (mu - mu_t).square().mean() + 5 * (x_hat - x_hat_t).abs().mean())

        plain.step(x, rate * (1 - step / len(batches)), k_l if loss_set.lam > 0 else None)

    assert len(batches) == 15
    assert len(records) == epochs
    if loss_set.mu > 0:
        passed, negative = (sum(name == update for _, name in plain.log) for update in ("latent", "negative"))
        assert negative in {0.0: [0], 1e9: [passed]}.get(threshold, range(1, passed))
    for name, network in student.networks().items():
        weights, start = network.state_dict(), tiny(1).networks()[name].state_dict()
        torch.testing.assert_close(weights, plain.gan.networks()[name].state_dict(), rtol=1e-6, atol=1e-8)
        changed = any(not torch.equal(value, start[key]) for key, value in weights.items())
        assert changed == (name == "generator" or loss_set.nu > 0)


# One batch at a time.

LOSS_NAMES = {
    "ssim_loss": "ssim",
    "l1": "l1",
    "latent_loss": "latent",
    "categorical_loss": "categorical",
    "negative_loss": "negative",
    "mutual_information_loss": "mutual",
    "wasserstein_loss": "wasserstein",
    "gradient_penalty": "penalty",
}


@pytest.fixture(autouse=True)
def named_losses(monkeypatch):
    """Every loss carries its name; the adversarial loss, minus the critic's value, gets it from the operator."""

    def named(function, name):
        def wrapped(*args):
            value = function(*args)
            value.loss_name = name
            return value

        return wrapped

    for function, name in LOSS_NAMES.items():
        monkeypatch.setattr(cvgad, function, named(getattr(cvgad, function), name))
    monkeypatch.setattr(torch.Tensor, "__neg__", named(torch.Tensor.__neg__, "adversarial"))


def train_step(gan, objective, step=0, weight_g=1.0, weight_d=1.0, k_l=None, num=3):
    """The updates of one batch, none of which is made, and the losses that are reported."""
    with FeatureHooks(gan.generator, gan.taps) as hooks:
        torch.manual_seed(step)
        state = RecordingState(gan, hooks)
        losses = objective.train_step(state, noise(num, 1, 16, 16), weight_g, weight_d, step, k_l)
    return state.updates, losses


def names(*args, **kwargs):
    return [update.name for update in train_step(*args, **kwargs)[0]]


FULL = [CRITIC, RECONSTRUCTION, LATENT, NEGATIVE, MUTUAL, RECONSTRUCTION]
ALWAYS = CvgadObjective(latent_threshold=1e9)


def k_l_of_z1(outputs):
    return outputs["z1"].square().mean()


@pytest.mark.parametrize("cycle", [0, 1, 7])
def test_the_order_of_the_updates_over_a_cycle(cycle):
    order = [names(tiny(), ALWAYS, 6 * cycle + phase) for phase in range(6)]
    assert order == [FULL, FULL, FULL, FULL, [CRITIC], [ADVERSARIAL]]


def test_every_loss_is_reported_by_its_name_once_and_as_it_was_last():
    for phase in (0, 4, 5):
        updates, losses = train_step(tiny(), ALWAYS, phase)
        last = {}
        for update in updates:
            last = {name: value for name, value in last.items() if name not in update.losses} | update.losses
        assert list(losses) == list(last)
        assert all(losses[name] is value for name, value in last.items())


@pytest.mark.parametrize(
    ("weight", "gone"),
    [
        ("w_adv", (CRITIC, ADVERSARIAL)),
        ("w_mutual", (MUTUAL,)),
        ("w_negative", (NEGATIVE,)),
        *((weight, ()) for weight in ("w_ssim", "w_l1", "w_latent", "w_categorical", "w_penalty")),
    ],
)
def test_a_weight_of_0_removes_its_update_and_no_other(weight, gone):
    objective = dataclasses.replace(ALWAYS, **{weight: 0.0})
    for phase, updates in enumerate([FULL] * 4 + [[CRITIC], [ADVERSARIAL]]):
        assert names(tiny(), objective, phase) == [update for update in updates if update not in gone]


LOSSES = {
    RECONSTRUCTION: {"ssim": "w_ssim", "l1": "w_l1"},
    LATENT: {"latent": "w_latent", "categorical": "w_categorical"},
    NEGATIVE: {"negative": "w_negative"},
    MUTUAL: {"mutual": "w_mutual"},
    ADVERSARIAL: {"adversarial": "w_adv"},
}


@pytest.mark.parametrize(
    "without", [None, *[name for losses in LOSSES.values() for name in losses.values()], "w_penalty"]
)
def test_every_update_is_its_losses_by_their_weights(without):
    weights = WEIGHTS if without is None else WEIGHTS | {without: 0.0}
    objective = CvgadObjective(**weights, latent_threshold=1e9)
    for update in [*train_step(tiny(), objective, 0, 0.3, 2.0)[0], *train_step(tiny(), objective, 5, 0.3, 2.0)[0]]:
        if update.name == CRITIC:
            expected = 2 * (update.losses["wasserstein"] + weights["w_penalty"] * update.losses["penalty"])
        else:
            expected = 0.3 * sum(weights[weight] * update.losses[loss] for loss, weight in LOSSES[update.name].items())
        torch.testing.assert_close(update.loss, expected)


def test_without_both_latent_losses_they_are_measured_and_update_nothing():
    objective = CvgadObjective(w_latent=0, w_categorical=0, latent_threshold=1e9)
    updates, losses = train_step(tiny(), objective)
    measured = ("generator", ("latent", "categorical", "negative"))  # reduced before the update by the negative loss
    assert [update.name for update in updates] == [CRITIC, RECONSTRUCTION, measured, MUTUAL, RECONSTRUCTION]
    torch.testing.assert_close(updates[2].loss, losses["negative"])
    assert {"latent", "categorical"} < losses.keys()


def test_negative_training_waits_until_the_latent_loss_is_below_the_threshold():
    latent = train_step(tiny(), ALWAYS)[1]["latent"].item()
    below, above = (CvgadObjective(latent_threshold=latent * factor) for factor in (0.999, 1.001))
    assert NEGATIVE not in names(tiny(), below)
    assert NEGATIVE in names(tiny(), above)


def test_the_latent_loss_is_summed_over_components_unless_a_mean_is_asked_for():
    summed, mean = (
        train_step(tiny(), objective)[1]["latent"] for objective in (ALWAYS, CvgadObjective(distance="mean"))
    )
    torch.testing.assert_close(summed, 8 * mean)


def test_outliers_do_not_change_the_running_statistics_of_batch_norm():
    changed, same = tiny(norm="batch"), tiny(norm="batch")
    for gan, objective in ((changed, ALWAYS), (same, dataclasses.replace(ALWAYS, w_negative=0.0))):
        torch.manual_seed(0)
        train_step(gan.__class__(gan.generator.train(), gan.taps, gan.discriminator), objective)
        assert all(module.training for module in gan.generator.modules())
    counts = [gan.generator.encoder.features[1].num_batches_tracked.item() for gan in (changed, same)]
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("distance", [0.0, 1.0])
def test_where_every_code_is_near_a_mean_there_is_no_negative_training(distance):
    gan = tiny(num_clusters=400, latent_size=1)
    gan.generator.means.data = torch.linspace(-50, 50, 400).view(400, 1)
    updates = names(gan, dataclasses.replace(ALWAYS, negative_distance=distance))
    assert updates == [update for update in FULL if update != NEGATIVE]


def test_a_single_image_has_no_other_code():
    assert names(tiny(), ALWAYS, num=1) == [update for update in FULL if update != MUTUAL]
    assert MUTUAL in names(tiny(), ALWAYS, num=2)


@pytest.mark.parametrize("k_l", [None, k_l_of_z1], ids=["without K_l", "with K_l"])
@pytest.mark.parametrize(
    ("weight_g", "weight_d", "expected"),
    [
        (0.0, 1.0, [[CRITIC, K_L]] * 5 + [[K_L]]),
        (1.0, 0.0, [FULL[1:]] * 4 + [[K_L], [ADVERSARIAL]]),
        (0.0, 0.0, [[K_L]] * 6),
    ],
)
def test_a_coefficient_of_0_leaves_its_network(weight_g, weight_d, expected, k_l):
    if k_l is None:
        expected = [[update for update in updates if update != K_L] for updates in expected]
    assert [names(tiny(), ALWAYS, phase, weight_g, weight_d, k_l) for phase in range(6)] == expected


@pytest.mark.parametrize("w_adv", [0.0, 1.0])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_k_l_is_added_to_the_first_update_of_the_generator_and_to_no_other(weights, w_adv):
    gan, objective = tiny(), dataclasses.replace(ALWAYS, w_adv=w_adv)
    mu, x_hat = gan.generator(noise(3, 1, 16, 16))
    for step in range(12):
        marker, seen = torch.ones((), requires_grad=True), []

        def k_l(outputs, marker=marker, seen=seen):
            seen.append(outputs)
            return marker * k_l_of_z1(outputs)

        updates, _ = train_step(gan, objective, step, *weights, k_l)
        (outputs,) = seen
        assert set(outputs) == {"z1", "x_hat"}
        torch.testing.assert_close(outputs["z1"], mu)  # no noise
        torch.testing.assert_close(outputs["x_hat"], x_hat)
        assert outputs["x_hat"].requires_grad
        gradients = [
            torch.autograd.grad(update.loss, marker, allow_unused=True, retain_graph=True)[0] for update in updates
        ]
        first = [update.network for update in updates].index("generator")
        assert [gradient is not None for gradient in gradients] == [place == first for place in range(len(updates))]
        torch.testing.assert_close(gradients[first], k_l_of_z1(outputs))


def test_an_update_reaches_the_parts_that_it_trains():
    gan = tiny()
    expected = {
        CRITIC: {"features", "head"},
        RECONSTRUCTION: {"encoder", "decoder"},
        LATENT: {"encoder", "classifier", "means"},
        NEGATIVE: {"encoder", "decoder"},
        MUTUAL: {"encoder", "feature_discriminator"},
        ADVERSARIAL: {"encoder", "decoder"},
    }
    for update in [*train_step(gan, ALWAYS, 0)[0], *train_step(gan, ALWAYS, 5)[0]]:
        parameters = dict(gan.networks()[update.network].named_parameters())
        gradients = torch.autograd.grad(update.loss, list(parameters.values()), allow_unused=True, retain_graph=True)
        reached = {
            key.split(".")[0]
            for key, g in zip(parameters, gradients, strict=True)
            if g is not None and g.abs().max() > 0
        }
        assert reached == expected[update.name]
        if update.name == CRITIC:
            of_generator = torch.autograd.grad(update.loss, list(gan.generator.parameters()), allow_unused=True)
            assert of_generator == (None,) * len(of_generator)


def test_default_weights_are_the_papers():
    default = CvgadObjective()
    weights = default.w_ssim, default.w_l1, default.w_latent, default.w_categorical, default.w_mutual
    assert weights == (50, 10, 5, 1, 10)
    assert (default.negative_distance, default.w_penalty) == (2, 10)


@pytest.mark.parametrize(
    "name", [field.name for field in dataclasses.fields(CvgadObjective) if field.name != "distance"]
)
@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_weights_are_finite_and_at_least_0(name, weight):
    with pytest.raises(KdganError, match=f"got {name} = {weight:g}.* finite number ≥ 0"):
        CvgadObjective(**{name: weight})


def test_without_a_reconstruction_loss_there_is_no_cvgad():
    with pytest.raises(KdganError, match="needs a reconstruction loss"):
        CvgadObjective(w_ssim=0, w_l1=0)


def test_networks_of_another_family_are_refused():
    ede = build(Architecture(channels=(2, 4), image_size=16, latent_size=8))
    with pytest.raises(KdganError, match="cvgad generator and its critic; got Generator and Discriminator"):
        train_step(ede, ALWAYS)
    without_critic = Gan(tiny().generator, tiny().taps)
    with pytest.raises(KdganError, match="got Generator and NoneType"):
        train_step(without_critic, ALWAYS)


def test_any_gan_can_be_trained_by_k_l_alone():
    gan, seen = Gan(nn.Identity(), {"x_hat": ""}), []

    def k_l(outputs):
        seen.append(outputs["x_hat"])
        return outputs["x_hat"].mean()

    (update,), losses = train_step(gan, ALWAYS, 0, 0.0, 0.0, k_l)
    assert (update.name, losses) == (K_L, {})
    assert torch.equal(seen[0], noise(3, 1, 16, 16))
    assert update.loss == seen[0].mean()


# Outliers


@pytest.mark.parametrize("distance", [0.5, 2.0])
@pytest.mark.parametrize("num_clusters", [1, 4])
def test_outliers_are_far_from_every_mean_and_not_too_far_from_one(num_clusters, distance):
    torch.manual_seed(0)
    means = torch.randn(num_clusters, 8)
    codes = outlier_codes(means, 300, distance).numpy()
    distances = np.array([[np.sqrt(((code - mean) ** 2).mean()) for mean in means.numpy()] for code in codes])
    assert 150 < len(codes) <= 300
    assert distances.min() > distance
    assert distances.min(1).max() < 1.5 * distance * (1 + 1e-5)
    assert distances.min(1).max() > 1.4 * distance


def test_outliers_lie_around_every_mean_in_every_direction():
    torch.manual_seed(0)
    means = torch.tensor([[0.0, 0.0], [100.0, 0.0]])
    codes = outlier_codes(means, 4000, 2.0)
    first = codes[codes[:, 0] < 50]
    assert len(codes) == 4000  # none is near the other mean
    assert abs(len(first) - 2000) < 4 * math.sqrt(4000 / 4)
    angles = torch.atan2(first[:, 1], first[:, 0])
    counts = torch.histc(angles, 8, -math.pi, math.pi)
    assert ((counts - len(first) / 8).abs() < 4 * math.sqrt(len(first) / 8)).all()
    lengths = first.norm(dim=1) / 2**0.5 / 2  # uniform from 1 to 1.5
    assert lengths.mean() == pytest.approx(1.25, abs=0.02)


def test_outliers_near_another_mean_are_left_out():
    torch.manual_seed(0)
    means = torch.tensor([[0.0], [2.5]])
    codes = outlier_codes(means, 1000, 2.0)
    assert 300 < len(codes) < 700  # those between the two are gone
    assert ((codes < 0) | (codes > 2.5)).all()
