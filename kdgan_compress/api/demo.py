"""The whole pipeline on the packaged sample: teacher, student alone, student distilled, profile, export, score."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from kdgan_compress.api.distill import distill
from kdgan_compress.api.export import export_detector
from kdgan_compress.api.profile import CompressionRatios, ModelProfile, profile_all, ratios
from kdgan_compress.api.train import train
from kdgan_compress.data import load_split
from kdgan_compress.errors import KdganError
from kdgan_compress.evaluation import reconstruct, score_images
from kdgan_compress.experiment.models import load_model
from kdgan_compress.experiment.recipe import load_recipe
from kdgan_compress.experiment.results import RunResult, ShowProgress
from kdgan_compress.reports import Reconstruction, plot_reconstructions
from kdgan_compress.runtime import Detector
from kdgan_compress.runtime.images import find_images

QUICK = {"training": {"epochs": 1}, "distillation": {"schedule": "2->3", "training": {"epochs": 1}}}


@dataclass(frozen=True)
class DemoRow:
    """One model of the closing table: its training, its costs, and how many times less it costs than the teacher."""

    name: str
    training: RunResult
    profile: ModelProfile
    ratios: CompressionRatios


@dataclass(frozen=True)
class Demo:
    """What the demo made.

    Attributes:
        rows: Teacher, student alone, student distilled; costs measured in one run.
        picture: Inputs, both reconstructions and scores.
        detector: The exported student.
        images: A folder with one test image of each class, for ``kdgan-compress score``.
        scored: What the detector says of them: path, score, whether it is an anomaly.
        quick: Whether trainings were cut short, so that no figure means anything.
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
    """Run the pipeline into a folder.

    Args:
        out: A folder without a demo in it.
        quick: One epoch a stage, to see that everything works; its figures mean nothing.
        announce: Told what comes next, one line.
        show_progress: Called about every 512 images of a training.
    """
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise KdganError("The demo must have a new folder", f"found files in {out}", "Remove it, or give another --out")
    announce = announce or (lambda _: None)
    recipe, yardstick = load_recipe(), load_recipe("alone")
    if quick:
        recipe = recipe.replace(QUICK)
    num_train = len(load_split(recipe.data, recipe.model.image_size, 1).train)
    epochs = sum(stage.epochs for stage in recipe.distillation.stages(num_train))
    announce("1/5  training the teacher")
    teacher = train(recipe, out / "teacher", show_progress=show_progress)
    announce("2/5  training the student alone, on as many images as it will see when distilled")
    alone = train(
        yardstick.replace({"training": {"epochs": epochs}}), out / "student-alone", show_progress=show_progress
    )
    announce(f"3/5  distilling the student by {recipe.distillation.schedule}")
    student = distill(teacher.run, recipe, out / "student", show_progress=show_progress)
    announce("4/5  exporting and profiling")
    detector = export_detector(student.run, out / "student.onnx")
    profiles = profile_all([teacher.run, alone.run, student.run])
    rows = [
        DemoRow(name, training, costs, ratios(costs, profiles[0]))
        for name, training, costs in zip(
            ("teacher", "alone", "distilled"), (teacher, alone, student), profiles, strict=True
        )
    ]
    announce("5/5  scoring one image of each class with the exported file")
    picture = out / "reconstructions.png"
    images = _picture(teacher, student, picture, out / "images")
    scored = [(str(path), *Detector(detector.path).score_file(path)) for path in find_images(images)]
    return Demo(rows, str(picture), detector.path, str(images), scored, quick)


def _picture(teacher: RunResult, student: RunResult, picture: Path, folder: Path) -> Path:
    """Draw one test image of each class with what both networks make of it; the images go to ``folder`` as PNG."""
    checkpoint = load_model(student.run)
    split = load_split(checkpoint.data, checkpoint.architecture.image_size, checkpoint.architecture.image_channels)
    classes, first = np.unique(split.test_classes, return_index=True)
    images = split.test[first]
    rows = []
    for name, run in (("teacher", teacher), ("student", student)):
        model = load_model(run.run)
        gan = model.build()
        scores = score_images(gan.generator, images)
        rows.append(Reconstruction(name, reconstruct(gan, images), scores, model.threshold))
    normal = split.test_classes[~split.test_is_anomalous][0]
    title = f"normal class: {normal}; scores stand below, red is an anomaly"
    plot_reconstructions(images, list(classes), rows, title, picture)
    folder.mkdir(exist_ok=True)
    for name, image in zip(classes, images, strict=True):
        Image.fromarray(image[0].numpy()).save(folder / f"{name}.png")
    return folder
