import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdgan_compress.distillation.policies import FROM_SCRATCH, STRUCTURES, LossSet, Stage, parse_schedule
from kdgan_compress.errors import KdganError

few = settings(max_examples=25, deadline=None, derandomize=True, database=None)


def stage(**changes):
    return Stage(
        **{"name": "2", "loss_set": FROM_SCRATCH, "epochs": 1, "learning_rate": 1e-3, "teacher_learning_rate": 0.0}
        | changes
    )


@pytest.mark.parametrize(
    ("structure", "names"),
    [
        (1, {"K_l"}),
        (2, {"L_g^S", "L_d^S", "K_l"}),
        (3, {"L_g^T", "L_d^T", "K_l"}),
        (4, {"L_g^T", "L_d^T", "L_g^S", "L_d^S", "K_l"}),
    ],
)
def test_structures_are_equation_9(structure, names):
    losses = STRUCTURES[structure]
    weights = {
        "L_g^T": losses.alpha,
        "L_d^T": losses.beta,
        "L_g^S": losses.mu,
        "L_d^S": losses.nu,
        "K_l": losses.lam,
    }
    assert weights == {name: float(name in names) for name in weights}


def test_there_are_four_structures():
    assert list(STRUCTURES) == [1, 2, 3, 4]


@pytest.mark.parametrize(("structure", "trained"), [(1, False), (2, False), (3, True), (4, True)])
def test_the_teacher_is_frozen_in_1_and_2_and_trained_in_3_and_4(structure, trained):
    assert STRUCTURES[structure].trains_teacher is trained
    assert STRUCTURES[structure].needs_teacher


def test_from_scratch_has_the_students_losses_and_no_teacher():
    assert dataclasses.astuple(FROM_SCRATCH) == (0, 0, 1, 1, 0)
    assert not FROM_SCRATCH.trains_teacher
    assert not FROM_SCRATCH.needs_teacher


@pytest.mark.parametrize("weight", ["alpha", "beta"])
def test_one_loss_of_the_teachers_is_enough_to_train_and_need_it(weight):
    losses = LossSet(mu=1, **{weight: 0.5})
    assert losses.trains_teacher
    assert losses.needs_teacher


@pytest.mark.parametrize("name", ["alpha", "beta", "mu", "nu", "lam"])
def test_no_coefficient_is_negative(name):
    with pytest.raises(KdganError, match=r"coefficients ≥ 0 .*; got alpha, beta, mu, nu, lam = .*-0\.1"):
        LossSet(**{"mu": 1, "lam": 1} | {name: -0.1})


@few
@given(alpha=st.floats(0, 10), beta=st.floats(0, 10), nu=st.floats(0, 10))
def test_some_loss_trains_the_students_generator(alpha, beta, nu):
    with pytest.raises(KdganError, match="train the student's generator"):
        LossSet(alpha=alpha, beta=beta, nu=nu)
    for weight in ("mu", "lam"):
        assert LossSet(alpha=alpha, beta=beta, nu=nu, **{weight: 1e-6}).nu == nu


def test_a_loss_set_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FROM_SCRATCH.mu = 2.0


@pytest.mark.parametrize("epochs", [0, -1])
def test_a_stage_lasts_at_least_one_epoch(epochs):
    assert stage(epochs=1).epochs == 1
    with pytest.raises(KdganError, match=f"at least 1 epoch; got {epochs}"):
        stage(epochs=epochs)


@pytest.mark.parametrize(
    ("text", "structures"),
    [
        ("2", (2,)),
        ("2->3", (2, 3)),
        ("1→2→4", (1, 2, 4)),
        (" 2 -> 3 ", (2, 3)),
        ("2 →3->  4", (2, 3, 4)),
        ("2->2", (2, 2)),
    ],
)
def test_schedules_are_read(text, structures):
    assert parse_schedule(text) == structures


@few
@given(chain=st.lists(st.integers(1, 4), min_size=1, max_size=6), arrow=st.sampled_from(["->", "→", " -> ", " → "]))
def test_every_chain_of_structures_is_read_back(chain, arrow):
    assert parse_schedule(arrow.join(map(str, chain))) == tuple(chain)


@pytest.mark.parametrize(
    "text",
    ["", " ", "5", "0", "-1", "2-3", "2,3", "2>3", "->", "2->", "->3", "2->->3", "2->5", "23", "2.0", "two", "②"],
)
def test_what_is_not_a_schedule_is_refused(text):
    with pytest.raises(KdganError, match="structures 1 to 4 joined by ->") as caught:
        parse_schedule(text)
    assert repr(text) in str(caught.value)
