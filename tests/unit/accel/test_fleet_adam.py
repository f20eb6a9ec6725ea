"""Adam against torch's: alone, for a fleet at any rates, from anywhere."""

import copy

import pytest
import torch
from kdgan_compress.accel.fleet_adam import Adam
from torch import nn

BETAS = (0.5, 0.99)
SHAPES = [(3,), (2, 3, 4, 4), (1, 2, 1, 1)]
NUM_STEPS = 30
KEPT_BACK = {1: (0, 1, 2, 7, 20), 2: tuple(range(5, 25))}
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
    return 0.01 * (member + 1) * (1 - step / NUM_STEPS) * (member != 3)  # the fourth stands still


class Single:
    """One member by torch."""

    def __init__(self, member=0, betas=BETAS):
        self.member, self.parameters = member, start(member)
        self.adam = torch.optim.Adam(self.parameters, betas=betas)
        self.num_steps = 0

    def step(self, lr, kept_back=None):
        self.adam.param_groups[0]["lr"] = lr
        for place, parameter in enumerate(self.parameters):
            has_none = self.num_steps in (kept_back or {}).get(place, ())
            parameter.grad = None if has_none else gradient(self.member, self.num_steps, place)
        self.adam.step()
        self.num_steps += 1
        return self

    @property
    def state(self):
        """Weights, moments and counts by parameter; zeros where torch has not begun."""
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


def fleet_of(members):
    parameters = [
        nn.Parameter(torch.cat([own.detach() for own in parts])) for parts in zip(*map(start, members), strict=True)
    ]
    return Adam(parameters, BETAS, len(members))


def move(adam, members, steps, rates, kept_back=None):
    """A step of ours; each member may be at another step of its own."""
    for place, parameter in enumerate(adam.parameters):
        has_none = steps[0] in (kept_back or {}).get(place, ())
        parts = [gradient(member, step, place) for member, step in zip(members, steps, strict=True)]
        parameter.grad = None if has_none else torch.cat(parts)
    adam.step(rates)


def states_of(adam):
    """By member, as ``Single.state``."""
    state = adam.state_dict()
    by_parameter = zip(adam.parameters, state["means"], state["squares"], state["steps"], strict=True)
    chunks = [[part.detach().chunk(adam.num_members) for part in parts] for parts in by_parameter]
    return [
        [(*(part[member] for part in parts[:3]), float(parts[3][member])) for parts in chunks]
        for member in range(adam.num_members)
    ]


def assert_near(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kept_back", [None, KEPT_BACK], ids=["always", "not always"])
@pytest.mark.parametrize("betas", [BETAS, (0.9, 0.999), (0.0, 0.5)])
def test_one_networks_adam_is_torchs(betas, kept_back):
    adam, single = Adam(start(), betas), Single(betas=betas)
    for step in range(NUM_STEPS):
        move(adam, [0], [step], [rate(0, step)], kept_back)
        assert_near(states_of(adam), [single.step(rate(0, step), kept_back).state])
    expected = [NUM_STEPS - len((kept_back or {}).get(place, ())) for place in range(3)]
    assert [count for *_, count in single.state] == expected
    assert not any(torch.equal(own, before) for own, before in zip(single.parameters, start(), strict=True))


@pytest.mark.parametrize("kept_back", [None, KEPT_BACK], ids=["always", "not always"])
@pytest.mark.parametrize("rates_differ", [True, False])
def test_a_fleets_adam_is_torchs_for_each_member(rates_differ, kept_back):
    members = range(4)
    adam, singles = fleet_of(members), [Single(member) for member in members]
    for step in range(NUM_STEPS):
        rates = [rate(member if rates_differ else 0, step) for member in members]
        move(adam, members, [step] * 4, rates, kept_back)
        for single, lr in zip(singles, rates, strict=True):
            single.step(lr, kept_back)
        assert_near(states_of(adam), [single.state for single in singles])


@pytest.mark.parametrize("rates_differ", [True, False])
def test_rates_may_fall_together_and_apart_again(rates_differ):
    adam, singles = fleet_of(range(2)), [Single(0), Single(1)]
    for step in range(NUM_STEPS):
        rates = [0.01, 0.02 if (step % 3 == 0) == rates_differ else 0.01]
        move(adam, range(2), [step] * 2, rates)
        assert_near(states_of(adam), [single.step(lr).state for single, lr in zip(singles, rates, strict=True)])


@pytest.mark.parametrize("rates_differ", [True, False])
@pytest.mark.parametrize("ahead", [(0, 4, 11), (5, 5, 5), (0, 0, 1)], ids=str)
def test_members_that_are_out_of_step_go_on_as_alone(ahead, rates_differ):
    members = range(len(ahead))
    own, singles = [Adam(start(member), BETAS) for member in members], [Single(member) for member in members]
    for member, number in enumerate(ahead):
        for step in range(number):
            move(own[member], [member], [step], [0.01])
            singles[member].step(0.01)
    adam = fleet_of(members)
    with torch.no_grad():
        for place, parameter in enumerate(adam.parameters):
            parameter.copy_(torch.cat([each.parameters[place] for each in own]))
    adam.stack(own)
    assert_near(states_of(adam), [single.state for single in singles])
    for step in range(NUM_STEPS):
        rates = [rate(member if rates_differ else 0, step) for member in members]
        move(adam, members, [number + step for number in ahead], rates)
        for single, lr in zip(singles, rates, strict=True):
            single.step(lr)
        assert_near(states_of(adam), [single.state for single in singles])


def test_out_of_step_with_parameters_that_have_no_gradient():
    own = [Adam(start(member), BETAS) for member in range(2)]
    singles = [Single(0), Single(1)]
    for step in range(3):  # the second member alone
        move(own[1], [1], [step], [0.01], KEPT_BACK)
        singles[1].step(0.01, KEPT_BACK)
    adam = fleet_of(range(2))
    with torch.no_grad():
        for place, parameter in enumerate(adam.parameters):
            parameter.copy_(torch.cat([each.parameters[place] for each in own]))
    adam.stack(own)
    for step in range(10):
        gradients = [torch.cat([gradient(0, step, place), gradient(1, step + 3, place)]) for place in range(3)]
        for place, parameter in enumerate(adam.parameters):
            parameter.grad = None if (step + place) % 3 == 0 else gradients[place]
        adam.step([0.01, 0.03])
        for single, lr, chunk in zip(singles, (0.01, 0.03), (0, 1), strict=True):
            for parameter, whole in zip(single.parameters, adam.parameters, strict=True):
                parameter.grad = None if whole.grad is None else whole.grad.chunk(2)[chunk].clone()
            single.adam.param_groups[0]["lr"] = lr
            single.adam.step()
        assert_near(states_of(adam), [single.state for single in singles])


def test_stacked_and_split_every_member_has_its_own_again():
    members = [Adam(start(member), BETAS) for member in range(3)]
    for member, adam in enumerate(members):
        for step in range(2 + member):
            move(adam, [member], [step], [0.01])
    before = copy.deepcopy([adam.state_dict() for adam in members])
    fleet = fleet_of(range(3))
    fleet.stack(members)
    for adam in members[::2]:
        adam.load_state_dict(Adam(start(), BETAS).state_dict())
    places = [tensor.data_ptr() for adam in members for tensor in adam.state_dict()["means"]]
    fleet.split([members[0], None, members[2]])
    torch.testing.assert_close([adam.state_dict() for adam in members], before, rtol=0, atol=0)
    assert [tensor.data_ptr() for adam in members for tensor in adam.state_dict()["means"]] == places
    move(fleet, range(3), [2, 3, 4], [0.01] * 3)
    torch.testing.assert_close([adam.state_dict() for adam in members], before, rtol=0, atol=0)  # a copy


def test_a_single_one_loaded_goes_on_where_the_other_was():
    first, single = Adam(start(), BETAS), Single()
    for step in range(5):
        move(first, [0], [step], [0.01])
        single.step(0.01)
    second = Adam([nn.Parameter(parameter.detach().clone()) for parameter in first.parameters], BETAS)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for step in range(5, 10):
        move(second, [0], [step], [0.01])
        single.step(0.01)
    assert_near(states_of(second), [single.state])
