"""The pipeline on the packaged sample: teacher, student from scratch and distilled, profile, export, score."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from kdgan_compress.api.demo_folder import mark_demo_folder
from kdgan_compress.api.distill import distill
from kdgan_compress.api.export import export_detector
from kdgan_compress.api.profile import CompressionRatios, ModelProfile, profile_all, ratios
from kdgan_compress.api.resume import resume
from kdgan_compress.api.train import train
from kdgan_compress.data import load_split
from kdgan_compress.evaluation import reconstruct, score_images
from kdgan_compress.experiment.models import load_model
from kdgan_compress.experiment.recipe import load_recipe
from kdgan_compress.experiment.results import RunResult, ShowProgress
from kdgan_compress.experiment.run_folder import RunFolder
from kdgan_compress.reports import Reconstruction, plot_reconstructions
from kdgan_compress.runtime import Detector
from kdgan_compress.runtime.image_files import find_images

QUICK = {
    "model": {"width": 16},
    "training": {"epochs": 1},
    "distillation": {"schedule": "2->3", "training": {"epochs": 1}},
}
STEPS = (
    ("training the teacher", 1.0),
    ("training the student from scratch, on as many images as it sees when it is distilled", 0.1),
    ("distilling the student", 0.6),
    ("exporting and profiling", 0.2),
    ("scoring one image of each class with the exported file", 0.02),
)
"""The steps, and roughly how long each takes as a multiple of the teacher's training."""


@dataclass(frozen=True)
class DemoRow:
    """One model of the closing table: its training, its costs, and the teacher's costs divided by them."""

    name: str
    training: RunResult
    profile: ModelProfile
    ratios: CompressionRatios


@dataclass(frozen=True)
class Demo:
    """The demo's results.

    Attributes:
        rows: Teacher, student from scratch, distilled student; costs are measured in one run.
        picture: Inputs, both reconstructions and scores.
        detector: The exported student.
        images: A folder with one test image of each class, for ``kdgan-compress score``.
        scored: The detector's path, score and verdict for each of them.
        quick: Whether the trainings were cut short, so that the metrics are meaningless.
    """

    rows: list[DemoRow]
    picture: str
    detector: str
    images: str
    scored: list[tuple[str, float, bool]]
    quick: bool


def demo(
    out: str | Path = "demo",
    *,
    quick: bool = False,
    announce: Callable[[str], None] | None = None,
    show_progress: ShowProgress | None = None,
) -> Demo:
    """Run the pipeline into a folder, or continue there what an interrupted demo began.

    Args:
        out: A new folder, or that of an earlier demo, whose finished trainings are kept.
        quick: A small teacher and one epoch per stage: a smoke test with meaningless metrics.
        announce: Called with one line before each of the five steps.
        show_progress: Called about every 512 images of a training.

    Raises:
        KdganError: The folder has other files, or can't be written.
    """
    out = Path(out)
    mark_demo_folder(out, quick)
    announce = announce or (lambda _: None)
    recipe, baseline_recipe = load_recipe(), load_recipe("from-scratch")
    if quick:
        recipe = recipe.replace(QUICK)
    num_train = len(load_split(recipe.data, recipe.model.image_size, 1).train)
    epochs = sum(stage.epochs for stage in recipe.distillation.stages(num_train))
    baseline_recipe = baseline_recipe.replace({"training": {"epochs": epochs}})

    announce(_step_line(0))
    teacher = _finish(out / "teacher", lambda folder: train(recipe, folder, show_progress=show_progress), show_progress)
    announce(_step_line(1, teacher))
    baseline = _finish(
        out / "student-from-scratch",
        lambda folder: train(baseline_recipe, folder, show_progress=show_progress),
        show_progress,
    )
    announce(_step_line(2, teacher))
    student = _finish(
        out / "student",
        lambda folder: distill(teacher.run, recipe, folder, show_progress=show_progress),
        show_progress,
    )
    announce(_step_line(3, teacher))
    detector = export_detector(student.run, out / "student.onnx")
    profiles = profile_all([teacher.run, baseline.run, student.run])
    rows = [
        DemoRow(name, training, costs, ratios(costs, profiles[0]))
        for name, training, costs in zip(
            ("teacher", "from scratch", "distilled"), (teacher, baseline, student), profiles, strict=True
        )
    ]
    announce(_step_line(4, teacher))
    picture = out / "reconstructions.png"
    images = _picture(teacher, student, picture, out / "images")
    scored = [(str(path), *Detector(detector.path).score_file(path)) for path in find_images(images)]
    return Demo(rows, str(picture), detector.path, str(images), scored, quick)


def _finish(folder: Path, start: Callable[[Path], RunResult], show_progress: ShowProgress | None) -> RunResult:
    """The result of a run: started, resumed if it was interrupted, or read if it is finished."""
    if not RunFolder(folder).recipe.exists():
        return start(folder)
    result = resume(folder, show_progress=show_progress)
    assert isinstance(result, RunResult), "one run folder has one result"
    return result


def _step_line(step: int, teacher: RunResult | None = None) -> str:
    """One line about a step, with the estimated time of it and the following steps once the teacher is trained."""
    line = f"{step + 1}/{len(STEPS)}  {STEPS[step][0]}"
    if teacher is None:
        return line
    return f"{line}; about {teacher.seconds * sum(duration for _, duration in STEPS[step:]):.0f} s left"


def _picture(teacher: RunResult, student: RunResult, picture: Path, folder: Path) -> Path:
    """Plot one test image of each class with both reconstructions, and save the images in ``folder`` as PNG."""
    checkpoint = load_model(student.run)
    split = load_split(checkpoint.data, checkpoint.architecture.image_size, checkpoint.architecture.image_channels)
    classes, first = np.unique(split.test_classes, return_index=True)
    images = split.test[first]
    rows = []
    for name, run in (("teacher", teacher), ("student", student)):
        model = load_model(run.run)
        gan = model.build()
        scores = score_images(model.scorer(), images)
        rows.append(Reconstruction(name, reconstruct(gan, images), scores, model.required_threshold))
    normal = split.test_classes[~split.test_is_anomalous][0]
    title = f"normal class: {normal}; scores are below the images, red is an anomaly"
    plot_reconstructions(images, list(classes), rows, title, picture)
    folder.mkdir(exist_ok=True)
    for name, image in zip(classes, images, strict=True):
        Image.fromarray(image[0].numpy()).save(folder / f"{name}.png")
    return folder
