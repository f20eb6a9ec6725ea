import itertools
import weakref

import pytest
import torch
from torch import nn

from kdgan_compress.distillation.hooks import Connectors, FeatureHooks
from kdgan_compress.errors import KdganError
from kdgan_compress.gans import Architecture, build

ONCE = "did not fire exactly once in the forward pass; fired"


class Net(nn.Module):
    """Two linear maps, called as a test wants."""

    def __init__(self, how=lambda self, x: self.second(self.first(x)), sizes=(3, 4, 2)):
        super().__init__()
        self.first = nn.Linear(sizes[0], sizes[1])
        self.second = nn.Linear(sizes[1], sizes[2])
        self.how = how

    def forward(self, x):
        return self.how(self, x)


def seeded(make, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def net(*args, **kwargs):
    return seeded(lambda: Net(*args, **kwargs))


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_hand(layer, x):
    return x @ layer.weight.T + layer.bias


def num_hooks(network):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules())


def test_taps_give_the_true_intermediate_outputs():
    network, x = net(), noise(5, 3)
    with FeatureHooks(network, {"a": "first", "b": "second", "all": ""}) as taps:
        outputs = taps(x)
    assert list(outputs) == ["a", "b", "all"]
    hidden = by_hand(network.first, x)
    torch.testing.assert_close(outputs["a"], hidden)
    torch.testing.assert_close(outputs["b"], by_hand(network.second, hidden))
    assert torch.equal(outputs["all"], network(x))


@pytest.mark.parametrize("family", ["ed", "ed_ehat", "ede"])
def test_the_taps_of_a_family_are_what_its_generator_returns(family):
    gan = build(Architecture(family=family, channels=(2, 4, 8), latent_size=16))
    images = noise(2, 1, 32, 32)
    with FeatureHooks(gan.generator, gan.taps) as taps:
        outputs = taps(images)
    returned = [output for output in gan.generator(images) if output is not None]
    assert list(outputs) == ["z1", "x_hat", "z2"][: len(returned)]
    for output, expected in zip(outputs.values(), returned, strict=True):
        assert torch.equal(output, expected)


def test_a_nested_path_reaches_inside():
    network = seeded(lambda: nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.Tanh()), nn.Linear(4, 2)))
    x = noise(2, 3)
    with FeatureHooks(network, {"a": "0.1"}) as taps:
        torch.testing.assert_close(taps(x)["a"], by_hand(network[0][0], x).tanh())


def test_gradients_flow_through_what_was_tapped():
    network, x = net(), noise(5, 3)
    with FeatureHooks(network, {"a": "first"}) as taps:
        taps(x)["a"].sum().backward()
    torch.testing.assert_close(network.first.weight.grad, x.sum(0).expand(4, 3))
    assert network.second.weight.grad is None


def test_nothing_is_tracked_under_no_grad():
    network, x = net(), noise(5, 3)
    with torch.no_grad(), FeatureHooks(network, {"a": "first"}) as taps:
        output = taps(x)["a"]
    assert not output.requires_grad
    torch.testing.assert_close(output, by_hand(network.first, x))


def test_hooks_exist_inside_with_only():
    network = net()
    taps = FeatureHooks(network, {"a": "first", "b": "second"})
    assert num_hooks(network) == 0
    for _ in range(2):
        with taps:
            assert num_hooks(network) == 2
            taps(noise(1, 3))
        assert num_hooks(network) == 0


def fails_on_a_negative_sum(self, x):
    hidden = self.first(x)
    if x.sum() < 0:
        raise RuntimeError("the network broke")
    return self.second(hidden)


def test_hooks_are_removed_after_an_exception_in_the_network():
    network = net(fails_on_a_negative_sum)
    with pytest.raises(RuntimeError, match="the network broke"), FeatureHooks(network, {"a": "first"}) as taps:
        taps(-torch.ones(1, 3))
    assert num_hooks(network) == 0


def test_an_interrupted_pass_leaves_nothing_in_the_next():
    network, x = net(fails_on_a_negative_sum), torch.ones(1, 3)
    with FeatureHooks(network, {"a": "first"}) as taps:
        with pytest.raises(RuntimeError, match="the network broke"):
            taps(-x)
        torch.testing.assert_close(taps(x)["a"], by_hand(network.first, x))


def test_consecutive_calls_do_not_mix():
    network, x, y = net(), noise(2, 3, seed=1), noise(4, 3, seed=2)
    with FeatureHooks(network, {"a": "first"}) as taps:
        first = taps(x)
        network(noise(7, 3))  # a pass that nobody asked the taps for
        second = taps(y)
    torch.testing.assert_close(first["a"], by_hand(network.first, x))
    torch.testing.assert_close(second["a"], by_hand(network.first, y))


def test_taps_keep_no_output_alive():
    network = net()
    with torch.no_grad(), FeatureHooks(network, {"a": "first"}) as taps:
        outputs = taps(noise(2, 3))
        kept = weakref.ref(outputs.pop("a"))
        assert kept() is None
        hidden = []
        network.second.register_forward_pre_hook(lambda _module, inputs: hidden.append(weakref.ref(inputs[0])))
        network(noise(7, 3))  # a pass that nobody asked the taps for
        assert hidden[0]() is None


def test_two_pairs_of_taps_on_one_network_do_not_disturb_each_other():
    network, x = net(), noise(2, 3)
    with FeatureHooks(network, {"a": "first"}) as outer:
        with FeatureHooks(network, {"b": "first"}) as inner:
            assert torch.equal(inner(x)["b"], outer(x)["a"])
        torch.testing.assert_close(outer(x)["a"], by_hand(network.first, x))


def test_an_unknown_path_lists_what_exists_and_suggests():
    generator = build(Architecture(channels=(2, 4, 8), latent_size=16)).generator
    with pytest.raises(KdganError) as caught:
        FeatureHooks(generator, {"z2": "encoder_2"})
    message = str(caught.value)
    assert message.startswith(
        "Tap 'z2' does not name a submodule; got 'encoder_2', there are encoder, encoder.features,"
    )
    assert "decoder.head" in message
    assert message.endswith("perhaps 'encoder2'.")


def test_an_unknown_path_like_nothing_gets_no_suggestion():
    with pytest.raises(KdganError, match=r"there are first, second\. Choose one of them\."):
        FeatureHooks(net(), {"a": "0.conv.weight"})
    with pytest.raises(KdganError, match="there are none"):
        FeatureHooks(nn.Linear(3, 4), {"a": "weight"})


@pytest.mark.parametrize(
    ("how", "times"),
    [
        (lambda self, x: self.second(self.first(x) + self.first(2 * x)), 2),
        (lambda self, x: self.second(torch.stack([self.first(row) for row in x])), 5),
        (lambda self, x: self.second(x @ self.first.weight.T), 0),
        (lambda self, x: self.second(self.first.forward(x)), 0),
    ],
    ids=["twice", "in a loop", "never", "by .forward"],
)
def test_a_tap_that_does_not_fire_once_is_an_error(how, times):
    with (
        FeatureHooks(net(how), {"a": "first"}) as taps,
        pytest.raises(KdganError, match=rf"'a' \('first'\) {ONCE} {times}"),
    ):
        taps(noise(5, 3))


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled_in_place(network):
    network.compile(backend="eager")
    return network


def compiled_and_wrapped(network):
    return torch.compile(network, backend="eager")


def outputs_or_refusal(taps, x):
    try:
        return taps(x), ""
    except KdganError as error:
        return {}, str(error)


@pytest.mark.parametrize(
    ("compiled", "path"), [(compiled_in_place, "first"), (compiled_and_wrapped, "_orig_mod.first")]
)
@pytest.mark.parametrize("first_called", ["itself", "a sister"])
def test_taps_on_a_network_compiled_before_are_right_or_an_error(fresh_compiler, compiled, path, first_called):
    network, sister = net(), seeded(Net, seed=1)
    called = compiled(network)
    (called if first_called == "itself" else compiled(sister))(noise(2, 3))
    with FeatureHooks(called, {"a": path}) as taps:
        for batch in (2, 2, 3, 3, 5, 5):
            x = noise(batch, 3, seed=batch)
            outputs, refusal = outputs_or_refusal(taps, x)
            if refusal:
                assert f"{ONCE} 0 times" in refusal
            else:
                torch.testing.assert_close(outputs["a"], by_hand(network.first, x))


@pytest.mark.parametrize(
    ("compiled", "path"), [(compiled_in_place, "first"), (compiled_and_wrapped, "_orig_mod.first")]
)
def test_a_network_first_called_inside_with_may_be_compiled(fresh_compiler, compiled, path):
    network = net()
    called = compiled(network)
    for _ in range(2):
        with FeatureHooks(called, {"a": path}) as taps:
            for batch in (2, 2, 3):
                x = noise(batch, 3, seed=batch)
                torch.testing.assert_close(taps(x)["a"], by_hand(network.first, x))


def test_an_output_that_is_not_a_tensor_is_an_error():
    generator = build(Architecture(channels=(2, 4, 8), latent_size=16)).generator
    with (
        FeatureHooks(generator, {"all": ""}) as taps,
        pytest.raises(KdganError, match="did not return one tensor; got tuple"),
    ):
        taps(noise(1, 1, 32, 32))


@pytest.mark.parametrize("grad", [True, False])
def test_an_output_that_a_later_layer_overwrites_is_an_error(grad):
    network = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(inplace=True)))
    refusal = pytest.raises(KdganError, match=r"'a' \('1'\) .*; a later layer overwrote it in place")
    with torch.set_grad_enabled(grad), FeatureHooks(network, {"a": "1"}) as taps, refusal:
        taps(noise(5, 3))


def test_an_output_overwritten_through_a_view_is_an_error():
    network = net(lambda self, x: self.second(self.first(x).view(-1, 4).mul_(2)))
    with FeatureHooks(network, {"a": "first"}) as taps, pytest.raises(KdganError, match="overwrote it in place"):
        taps(noise(5, 3))


def test_the_layer_that_works_in_place_can_be_tapped_itself():
    network = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)))
    x = noise(5, 3)
    with FeatureHooks(network, {"a": "1"}) as taps:
        torch.testing.assert_close(taps(x)["a"], by_hand(network[0], x).clamp(min=0))


def test_taps_outside_with_are_an_error():
    taps = FeatureHooks(net(), {"a": "first"})
    with pytest.raises(KdganError, match="outside `with`"):
        taps(noise(1, 3))
    with taps:
        taps(noise(1, 3))
    with pytest.raises(KdganError, match="outside `with`"):
        taps(noise(1, 3))


# Connectors


def outputs_of(**shapes):
    return {name: noise(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}


def test_connectors_exist_only_where_shapes_differ():
    student = outputs_of(z1=(2, 16), x_hat=(2, 1, 8, 8), f=(2, 4, 5, 5), mine=(2, 7))
    teacher = outputs_of(z1=(2, 24), x_hat=(2, 1, 8, 8), f=(2, 6, 5, 5), other=(2, 9))
    connectors = seeded(lambda: Connectors(student, teacher))
    assert set(connectors.maps) == {"z1", "f"}
    connected = connectors(student)
    assert {name: tuple(output.shape) for name, output in connected.items()} == {
        "z1": (2, 24),
        "x_hat": (2, 1, 8, 8),
        "f": (2, 6, 5, 5),
        "mine": (2, 7),
    }
    assert connected["x_hat"] is student["x_hat"]
    assert connected["mine"] is student["mine"]


def test_connectors_are_linear_in_the_channels_and_without_bias():
    student, teacher = outputs_of(z=(3, 4), f=(3, 4, 2, 5)), outputs_of(z=(3, 6), f=(3, 6, 2, 5))
    connectors = seeded(lambda: Connectors(student, teacher))
    connected = connectors(student)
    weights = {name: module.weight.reshape(6, 4) for name, module in connectors.maps.items()}
    torch.testing.assert_close(connected["z"], torch.einsum("oi,bi->bo", weights["z"], student["z"]))
    torch.testing.assert_close(connected["f"], torch.einsum("oi,bihw->bohw", weights["f"], student["f"]))
    assert sum(parameter.numel() for parameter in connectors.parameters()) == 2 * 6 * 4


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ((2, 3, 32, 32), (2, 3, 16, 16)),
        ((2, 3, 32, 32), (2, 1, 32, 16)),
        ((2, 16), (2, 16, 1, 1)),
        ((2, 4, 6), (2, 8, 6)),
        ((2, 16), (1, 16)),
    ],
    ids=["side", "side and channels", "rank", "sequence", "batch"],
)
def test_a_difference_other_than_in_channels_is_an_error(student, teacher):
    with pytest.raises(KdganError) as caught:
        Connectors(outputs_of(x_hat=student), outputs_of(x_hat=teacher))
    assert str(caught.value).startswith("Teacher and student differ in x_hat")
    assert f"got {teacher} and {student}" in str(caught.value)


def test_connectors_are_made_in_the_order_of_the_taps():
    """Their initial weights and their places in the optimiser must not hang on Python's hash seed."""
    names = [f"tap{i}" for i in range(8)]
    student, teacher = (outputs_of(**dict.fromkeys(names, shape)) for shape in ((2, 3), (2, 4)))
    connectors = seeded(lambda: Connectors(student, teacher))
    assert list(connectors.maps) == names


def test_the_gradient_reaches_student_and_connectors_and_the_teacher_stays_as_it_was():
    teacher = build(Architecture(channels=(3, 5, 7), latent_size=24), seed=1)
    student = build(Architecture(channels=(2, 4, 8), latent_size=16), seed=2)
    images = noise(2, 1, 32, 32)
    untapped = [output.detach() for output in teacher.generator(images)]
    with (
        FeatureHooks(teacher.generator, teacher.taps) as teacher_taps,
        FeatureHooks(student.generator, student.taps) as student_taps,
    ):
        with torch.no_grad():
            targets = teacher_taps(images)
        kept = {name: target.clone() for name, target in targets.items()}
        outputs = student_taps(images)
        connectors = seeded(lambda: Connectors(outputs, targets))
        connected = connectors(outputs)
        sum((connected[name] - targets[name]).square().sum() for name in targets).backward()

    assert set(connectors.maps) == {"z1", "z2"}
    for parameter in itertools.chain(student.generator.parameters(), connectors.parameters()):
        assert parameter.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.generator.parameters())
    for (name, target), expected in zip(targets.items(), untapped, strict=True):
        assert torch.equal(target, kept[name])
        assert torch.equal(target, expected)
    assert num_hooks(teacher.generator) == num_hooks(student.generator) == 0


def test_inference_mode_works() -> None:
    network = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    with FeatureHooks(network, {"first": "0"}) as taps, torch.inference_mode():
        images = torch.ones(2, 4)
        assert torch.equal(taps(images)["first"], network[0](images))
