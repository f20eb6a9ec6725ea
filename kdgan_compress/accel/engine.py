"""The fast engine: one model on im2col layers, several as a fleet, and on a GPU the whole step as one CUDA graph.

It enters the training through four seams and no others: ``targets`` (a teacher cache instead of the teacher),
``state.reduce`` (one mean per member), ``state.within_batch`` (images are compared within a member) and
``state.update`` (one fused optimiser pass for all members).
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from kdgan_compress.accel.cuda_graph import CUDAGraphStep
from kdgan_compress.accel.fleet import FleetState, stack_settings
from kdgan_compress.accel.layers import fast_layers
from kdgan_compress.accel.stacking import can_be_stacked, check_stack, stack_networks, to_grouped, to_samples
from kdgan_compress.accel.teacher_cache import TeacherCache, stacked_targets
from kdgan_compress.distillation.hooks import FeatureHooks
from kdgan_compress.distillation.precision import precision_context, step_in_precision
from kdgan_compress.distillation.resizing import ResizedObjective
from kdgan_compress.distillation.stage_run import StageRun
from kdgan_compress.distillation.step import StageModels, Targets
from kdgan_compress.distillation.train_state import TrainState
from kdgan_compress.distillation.trainer import Engine
from kdgan_compress.errors import KdganError
from kdgan_compress.gans import Gan, eval_mode, normalize_images
from kdgan_compress.gans.ede import GanomalyObjective
from kdgan_compress.gans.objective import Outputs

GRAPHABLE_OBJECTIVES = (GanomalyObjective,)
"""Objectives whose step reads nothing on the host, so that it can be captured as a CUDA graph."""


def fast_engine(runs: Sequence[StageRun], stack: ExitStack) -> Engine:
    """The engine for these models (``distillation.trainer.MakeEngine``)."""
    is_cuda = runs[0].images.is_cuda
    if len(runs) > 1 or (is_cuda and supports_cuda_graph(runs[0])):
        return FleetEngine(runs, stack)
    for state in (runs[0].student, runs[0].teacher):
        for network in () if state is None else state.gan.networks().values():
            stack.enter_context(fast_layers(network))
    return Engine(runs, stack)


class FleetEngine(Engine):
    """Trains K models of one shape as one fleet; smaller batches are padded with samples of weight 0.

    Args:
        runs: K stages after ``begin``, which train the same networks by the same losses. They may differ in data, seed,
            length, learning rates and weights.
        stack: See ``Engine``.
    """

    def __init__(self, runs: Sequence[StageRun], stack: ExitStack) -> None:
        precisions = sorted({run.settings.precision for run in runs})
        if len(precisions) > 1:
            raise KdganError("Members of a fleet differ in precision", f"got {', '.join(precisions)}", "Choose one")
        self._runs = list(runs)
        self._weights_by_sizes: dict[tuple[int, ...], Tensor] = {}
        self._device = runs[0].images.device
        self._student = FleetState([run.student for run in runs])
        k_l = stack_settings([run.k_l for run in runs], self._device)
        loss_set = stack_settings([run.stage.loss_set for run in runs], self._device)
        self._teacher: FleetState | None = None
        if loss_set.trains_teacher:
            self._teacher = FleetState([run.teacher for run in runs if run.teacher is not None])
        states = [state for state in (self._student, self._teacher) if state is not None]
        if any(map(_reinitialises, (member for state in states for member in state.members))):
            problem = "A model whose discriminator can be re-initialised trains alone"
            hint = "Leave out --fleet, or set objective.reinit_discriminator to 0"
            raise KdganError(problem, f"got {len(runs)} models with objective.reinit_discriminator", hint)
        for state in states:
            self._check(state.stacked, [member.gan for member in state.members])
            stack.enter_context(state.hooked(k_l.taps(state.gan)))
        self.models = StageModels(
            student=self._student,
            teacher=self._teacher,
            loss_set=loss_set,
            k_l=k_l,
            load_images=self._load_images,
            targets=self._targets(stack) if loss_set.distils else None,
        )
        self._is_captured = self._device.type == "cuda" and all(supports_cuda_graph(run) for run in runs)
        self._is_captured &= all(state.steps_synchronized for state in states)
        self._rates = torch.zeros(2, len(runs), device=self._device)
        step = step_in_precision(runs[0])
        self.train_step = CUDAGraphStep(step) if self._is_captured else step

    def begin_step(self, batches: Sequence[Tensor], lr_factors: Sequence[float]) -> Tensor:
        """See ``Engine.begin_step``; the indices are (B, K), those of smaller batches repeated."""
        stages = [run.stage for run in self._runs]
        rates = [
            [getattr(stage, name) * factor for stage, factor in zip(stages, lr_factors, strict=True)]
            for name in ("learning_rate", "teacher_learning_rate")
        ]
        if self._is_captured:
            self._rates.copy_(torch.tensor(rates), non_blocking=True)
        for state, row, tensor in zip((self._student, self._teacher), rates, self._rates, strict=True):
            if state is not None:
                state.set_learning_rates(tensor if self._is_captured else row)
        return self._pad(batches)

    def write_back(self, members: Sequence[bool]) -> None:
        """Bring the marked models' own networks, optimisers and EMAs to where the fleet is."""
        for state in (self._student, self._teacher):
            if state is not None:
                state.write_back(members)

    def _pad(self, batches: Sequence[Tensor]) -> Tensor:
        """Indices (B, K) with every batch padded to the largest; sets the sample weights."""
        sizes = tuple(len(batch) for batch in batches)
        size = max(run.settings.batch_size for run in self._runs) if self._is_captured else max(sizes)
        if sizes not in self._weights_by_sizes:
            counts = torch.tensor(sizes, device=self._device)
            weights = (torch.arange(size, device=self._device)[:, None] < counts) / counts
            self._weights_by_sizes[sizes] = weights.to(torch.get_default_dtype())
        is_padded = set(sizes) != {size}
        for state in (self._student, self._teacher):
            if state is not None:
                state.set_sample_weights(self._weights_by_sizes[sizes], is_padded, in_place=self._is_captured)
        if is_padded:
            rows = torch.arange(size, device=self._device)
            batches = [batch[rows % len(batch)] for batch in batches]
        return torch.stack(list(batches), dim=1)

    def _load_images(self, indices: Tensor) -> Tensor:
        columns = zip(self._runs, indices.unbind(1), strict=True)
        return normalize_images(torch.stack([run.images[column] for run, column in columns], 1).flatten(0, 1))

    def _targets(self, stack: ExitStack) -> Targets:
        caches = [run.targets for run in self._runs if run.targets is not None]
        if len(caches) == len(self._runs):
            return stacked_targets(caches)
        num_members, k_l = len(self._runs), self._runs[0].k_l
        if self._teacher is not None:
            generator: nn.Module = self._teacher.gan.generator
            forward = self._teacher.forward
        else:
            teachers = [run.teacher.gan for run in self._runs if run.teacher is not None]
            generator = stack_networks([teacher.generator for teacher in teachers])
            self._check({"generator": generator}, teachers)
            generator.requires_grad_(False).eval()
            hooks = stack.enter_context(FeatureHooks(generator, k_l.taps(teachers[0])))

            def forward(images: Tensor) -> Outputs:
                outputs = hooks(to_grouped(images, num_members))
                return {name: to_samples(output, num_members) for name, output in outputs.items()}

        def targets(images: Tensor, indices: Tensor) -> Outputs:
            with torch.no_grad(), eval_mode(generator):
                return k_l.add_reencoded_z2(forward(images), forward)

        return targets

    def _check(self, stacked: Mapping[str, nn.Module], gans: Sequence[Gan]) -> None:
        """Compare stacked networks with their members' on one image of each."""
        images = self._load_images(torch.zeros(1, len(gans), dtype=torch.int64, device=self._device))
        for name, network in stacked.items():
            members = [gan.networks()[name] for gan in gans]
            with ExitStack() as stack:
                stack.enter_context(precision_context("float32", self._device.type))
                for module in (network, *members):
                    stack.enter_context(eval_mode(module))
                check_stack(network, members, images)


def supports_cuda_graph(run: StageRun) -> bool:
    """Whether a step can be captured as a CUDA graph.

    Its networks can be stacked, stored targets are a cache, it reads nothing on the host, and padding affects no image.
    """
    if not isinstance(run.targets, TeacherCache | None):
        return False
    trains_teacher = run.stage.loss_set.trains_teacher
    states = [run.student, run.teacher] if trains_teacher else [run.student]
    networks = [network for state in states if state is not None for network in state.gan.networks().values()]
    if run.teacher is not None and run.targets is None and not trains_teacher:
        networks.append(run.teacher.gan.generator)
    return all(map(can_be_stacked, networks)) and all(
        state is not None
        and isinstance(state.objective, GRAPHABLE_OBJECTIVES)
        and not _reinitialises(state)
        and state.gan.is_batch_independent
        and not (state.connectors is not None and list(state.connectors.parameters()))
        for state in states
    )


def _reinitialises(state: TrainState) -> bool:
    """Whether the objective reads the discriminator's loss on the host after every step."""
    objective = state.objective
    inner = objective.objective if isinstance(objective, ResizedObjective) else objective
    return isinstance(inner, GanomalyObjective) and inner.reinit_discriminator > 0
