import numpy as np
import pytest
import torch

from kdgan_compress.distillation.loss import Distillation
from kdgan_compress.errors import KdganError
from kdgan_compress.gans import Architecture, build

TAPS = ("z1", "x_hat", "z2")


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


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
    architecture = Architecture(channels=(2, 4), image_size=16, latent_size=16)
    teacher, student = build(architecture, seed=1), build(architecture, seed=2)
    images = noise(3, 1, 16, 16).tanh().float()
    outputs_of = [dict(zip(TAPS, gan.generator(images), strict=True)) for gan in (student, teacher)]
    loss, _ = Distillation().loss(*outputs_of)
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


@pytest.mark.parametrize("name", ["w1", "wx", "w2"])
@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_are_finite_and_at_least_0(name, weight):
    with pytest.raises(KdganError, match=f"finite number ≥ 0; got {name} = {weight:g}"):
        Distillation(**{name: weight})
