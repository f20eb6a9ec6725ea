"""The fused optimisers against torch.optim.Adam: for one network, and for a fleet at any rates and step counts."""

import copy

import pytest
import torch
from torch import nn

from kdgan_compress.accel.optimizers import FleetAdam, FusedAdam

BETAS = (0.5, 0.99)
SHAPES = [(3,), (2, 3, 4, 4), (1, 2, 1, 1)]
NUM_STEPS = 30
WITHOUT_GRADIENT = {1: (0, 1, 2, 7, 20), 2: tuple(range(5, 25))}
"""Steps in which the second and the third parameter have no gradient."""


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def start(member=0):
    return [nn.Parameter(noise(*shape, seed=10 * member + i)) for i, shape in enumerate(SHAPES)]


def gradient(member, step, place):
    """Of sizes from far below Adam's epsilon to far above 1."""
    scale = 10.0 ** ((step * 7 + place * 3 + member * 5) % 14 - 11)
    return noise(*SHAPES[place], seed=1000 * member + 10 * step + place) * scale


def rate(member, step):
    return 0.01 * (member + 1) * (1 - step / NUM_STEPS) * (member != 3)  # the fourth is not trained


class Single:
    """One member, trained by torch.optim.Adam."""

    def __init__(self, member=0, betas=BETAS):
        self.member, self.parameters = member, start(member)
        self.adam = torch.optim.Adam(self.parameters, betas=betas)
        self.num_steps = 0

    def step(self, lr, without_gradient=None):
        self.adam.param_groups[0]["lr"] = lr
        for place, parameter in enumerate(self.parameters):
            has_none = self.num_steps in (without_gradient or {}).get(place, ())
            parameter.grad = None if has_none else gradient(self.member, self.num_steps, place)
        self.adam.step()
        self.num_steps += 1
        return self

    @property
    def state(self):
        """Weights, moments and step counts by parameter; zeros where torch has not begun."""
        states = [self.adam.state.get(parameter, {}) for parameter in self.parameters]
        return [
            (
                parameter.detach(),
                state.get("exp_avg", torch.zeros_like(parameter)).detach(),
                state.get("exp_avg_sq", torch.zeros_like(parameter)).detach(),
                float(state.get("step", 0)),
            )
            for parameter, state in zip(self.parameters, states, strict=True)
        ]


def fused(member=0, betas=BETAS):
    return FusedAdam(start(member), betas=betas)


def parameters_of(adam):
    return adam.param_groups[0]["params"]


def fleet_of(members, source=None):
    """The members stacked; from their optimisers, if there are any."""
    singles = source or [fused(member) for member in members]
    parts = zip(*map(parameters_of, singles), strict=True)
    parameters = [nn.Parameter(torch.cat([part.detach() for part in row])) for row in parts]
    adam = FleetAdam(parameters, betas=BETAS, num_members=len(members))
    if source:
        adam.stack(source)
    return adam


def set_rates(adam, rates):
    if isinstance(adam, FleetAdam):
        adam.learning_rates = rates
    else:
        (adam.param_groups[0]["lr"],) = rates


def make_step(adam, members, steps, rates, without_gradient=None):
    """A step of a fused optimiser; each member may be at another step index."""
    for place, parameter in enumerate(parameters_of(adam)):
        has_none = steps[0] in (without_gradient or {}).get(place, ())
        parts = [gradient(member, step, place) for member, step in zip(members, steps, strict=True)]
        parameter.grad = None if has_none else torch.cat(parts)
    set_rates(adam, rates)
    adam.step()


def states_of(adam):
    """By member, as ``Single.state``."""
    num_members = adam.num_members if isinstance(adam, FleetAdam) else 1
    rows = [[p.detach(), *(adam.state[p][name] for name in ("exp_avg", "exp_avg_sq"))] for p in parameters_of(adam)]
    steps = [adam.state[p]["step"].reshape(num_members) for p in parameters_of(adam)]
    return [
        [
            (*(tensor.chunk(num_members)[member] for tensor in row), float(step[member]))
            for row, step in zip(rows, steps, strict=True)
        ]
        for member in range(num_members)
    ]


def assert_near(states, expected):
    torch.testing.assert_close(states, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("without_gradient", [None, WITHOUT_GRADIENT], ids=["always", "not always"])
@pytest.mark.parametrize("betas", [BETAS, (0.9, 0.999), (0.0, 0.5)])
def test_one_networks_fused_adam_is_torchs(betas, without_gradient):
    adam, single = fused(betas=betas), Single(betas=betas)
    for step in range(NUM_STEPS):
        make_step(adam, [0], [step], [rate(0, step)], without_gradient)
        assert_near(states_of(adam), [single.step(rate(0, step), without_gradient).state])
    expected = [NUM_STEPS - len((without_gradient or {}).get(place, ())) for place in range(3)]
    assert [count for *_, count in single.state] == expected
    assert not any(map(torch.equal, single.parameters, start()))
    assert isinstance(adam, torch.optim.Adam)


@pytest.mark.parametrize("without_gradient", [None, WITHOUT_GRADIENT], ids=["always", "not always"])
@pytest.mark.parametrize("rates_differ", [True, False])
@pytest.mark.parametrize("as_tensor", [True, False])
def test_a_fleets_adam_is_torchs_for_each_member(as_tensor, rates_differ, without_gradient):
    members = range(4)
    adam, singles = fleet_of(members), [Single(member) for member in members]
    for step in range(NUM_STEPS):
        rates = [rate(member if rates_differ else 0, step) for member in members]
        tensor = torch.tensor(rates, dtype=torch.float64)  # what a captured step reads
        make_step(adam, members, [step] * 4, tensor if as_tensor else rates, without_gradient)
        for single, lr in zip(singles, rates, strict=True):
            single.step(lr, without_gradient)
        assert_near(states_of(adam), [single.state for single in singles])


@pytest.mark.parametrize("rates_differ", [True, False])
def test_rates_may_be_equal_at_some_steps_and_differ_at_others(rates_differ):
    adam, singles = fleet_of(range(2)), [Single(0), Single(1)]
    for step in range(NUM_STEPS):
        rates = [0.01, 0.02 if (step % 3 == 0) == rates_differ else 0.01]
        make_step(adam, range(2), [step] * 2, rates)
        assert_near(states_of(adam), [single.step(lr).state for single, lr in zip(singles, rates, strict=True)])


@pytest.mark.parametrize("rates_differ", [True, False])
@pytest.mark.parametrize("ahead", [(0, 4, 11), (5, 5, 5), (0, 0, 1)], ids=str)
def test_members_with_different_step_counts_continue_as_alone(ahead, rates_differ):
    members = range(len(ahead))
    sources, singles = [fused(member) for member in members], [Single(member) for member in members]
    for member, number in enumerate(ahead):
        for step in range(number):
            make_step(sources[member], [member], [step], [0.01])
            singles[member].step(0.01)
    adam = fleet_of(members, sources)
    assert adam.steps_synchronized == (len(set(ahead)) == 1)
    assert_near(states_of(adam), [single.state for single in singles])
    for step in range(NUM_STEPS):
        rates = [rate(member if rates_differ else 0, step) for member in members]
        make_step(adam, members, [number + step for number in ahead], rates)
        for single, lr in zip(singles, rates, strict=True):
            single.step(lr)
        assert_near(states_of(adam), [single.state for single in singles])


def test_different_step_counts_with_parameters_that_have_no_gradient():
    sources = [fused(member) for member in range(2)]
    singles = [Single(0), Single(1)]
    for step in range(3):  # the second member alone
        make_step(sources[1], [1], [step], [0.01], WITHOUT_GRADIENT)
        singles[1].step(0.01, WITHOUT_GRADIENT)
    adam = fleet_of(range(2), sources)
    for step in range(10):
        gradients = [torch.cat([gradient(0, step, place), gradient(1, step + 3, place)]) for place in range(3)]
        for place, parameter in enumerate(parameters_of(adam)):
            parameter.grad = None if (step + place) % 3 == 0 else gradients[place]
        set_rates(adam, [0.01, 0.03])
        adam.step()
        for single, lr, chunk in zip(singles, (0.01, 0.03), (0, 1), strict=True):
            for parameter, whole in zip(single.parameters, parameters_of(adam), strict=True):
                parameter.grad = None if whole.grad is None else whole.grad.chunk(2)[chunk].clone()
            single.adam.param_groups[0]["lr"] = lr
            single.adam.step()
        assert_near(states_of(adam), [single.state for single in singles])


def moments(adams):
    return [copy.deepcopy(adam.state_dict()["state"]) for adam in adams]


def test_unstacking_gives_back_exactly_what_was_stacked():
    members = [fused(member) for member in range(3)]
    for member, adam in enumerate(members):
        for step in range(2 + member):
            make_step(adam, [member], [step], [0.01])
    before = moments(members)
    fleet = fleet_of(range(3), members)
    for adam in members[::2]:
        adam.load_state_dict(fused().state_dict())
    pointers = [state["exp_avg"].data_ptr() for adam in members for state in adam.state.values()]
    fleet.unstack([members[0], None, members[2]])
    torch.testing.assert_close(moments(members), before, rtol=0, atol=0)
    assert [state["exp_avg"].data_ptr() for adam in members for state in adam.state.values()] == pointers
    make_step(fleet, range(3), [2, 3, 4], [0.01] * 3)
    torch.testing.assert_close(moments(members), before, rtol=0, atol=0)  # a copy


@pytest.mark.parametrize("num_steps", [0, 3])
def test_members_may_be_trained_by_torchs_adam_before_and_after(num_steps):
    singles, whole = [Single(member) for member in range(2)], [Single(member) for member in range(2)]
    for single in (*singles, *whole):
        for _ in range(num_steps):
            single.step(0.01)
    fleet = fleet_of(range(2), [single.adam for single in singles])
    make_step(fleet, range(2), [num_steps] * 2, [0.01, 0.02])
    fleet.unstack([single.adam for single in singles])
    for member, single in enumerate(singles):
        for parameter, stacked in zip(single.parameters, parameters_of(fleet), strict=True):
            parameter.data.copy_(stacked.detach().chunk(2)[member])
        single.num_steps += 1
        whole[member].step(0.01 * (1 + member))
    for single, expected in zip(singles, whole, strict=True):
        assert_near(single.step(0.01).state, expected.step(0.01).state)


@pytest.mark.parametrize("source", [FusedAdam, torch.optim.Adam])
def test_a_loaded_optimiser_continues_where_the_other_was(source):
    first, single = source(start(), betas=BETAS), Single()
    for step in range(5):
        make_step(first, [0], [step], [0.01])
        single.step(0.01)
    second = FusedAdam([nn.Parameter(parameter.detach().clone()) for parameter in parameters_of(first)], betas=BETAS)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for step in range(5, 10):
        make_step(second, [0], [step], [0.01])
        single.step(0.01)
    assert_near(states_of(second), [single.state])


def test_torchs_adam_loads_the_state_of_the_fused_one():
    first, single = fused(), Single()
    for step in range(5):
        make_step(first, [0], [step], [0.01])
    second = Single()
    for parameter, trained in zip(second.parameters, parameters_of(first), strict=True):
        parameter.data.copy_(trained.detach())
    second.adam.load_state_dict(copy.deepcopy(first.state_dict()))
    second.num_steps = 5
    for _ in range(6):
        single.step(0.01)
    assert_near(second.step(0.01).state, single.state)


def test_zero_grad_removes_all_gradients():
    for adam in (fused(), fleet_of(range(2))):
        make_step(adam, range(len(states_of(adam))), [0] * len(states_of(adam)), [0.01] * len(states_of(adam)))
        adam.zero_grad()
        assert all(parameter.grad is None for parameter in parameters_of(adam))
        assert isinstance(adam, torch.optim.Optimizer)


@pytest.mark.usefixtures("double")
def test_steps_are_counted_as_the_fused_kernel_takes_them_whatever_the_default_dtype():
    fleet = fleet_of(range(2), [torch.optim.Adam(start(), betas=BETAS, fused=True) for _ in range(2)])
    for adam in (fused(), fleet):
        assert {state["step"].dtype for state in adam.state.values()} == {torch.float32}
