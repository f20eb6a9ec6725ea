"""What a student is: its teacher's architecture with the student's settings, and a score of what is trained."""

import dataclasses
from collections.abc import Sequence

from kdgan_compress.distillation.policies import Stage
from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.recipe_sections import DistillationSection
from kdgan_compress.gans import FAMILIES, Architecture
from kdgan_compress.scores import ScoreSettings


def student_architecture(section: DistillationSection, teacher: Architecture, is_tiled: bool) -> Architecture:
    """The teacher's architecture with the student's channels, norm, family and image size.

    Raises:
        KdganError: The student would have larger images than its teacher, other tiles, or batch norm at batch size 1.
    """
    student = section.student
    if student.norm == "batch" and section.training.batch_size == 1:
        raise KdganError(
            "A student with batch norm needs batches of at least 2 images",
            "got a batch size of 1, where training and evaluation would normalise an image differently",
            "Give --norm instance, or a larger --batch-size",
        )
    image_size = student.image_size or teacher.image_size
    if image_size > teacher.image_size or (is_tiled and image_size != teacher.image_size):
        problem = "A student's images are at most as large as its teacher's, and its tiles equally large"
        raise KdganError(problem, f"got {image_size} and {teacher.image_size} pixels", "Choose another --image-size")
    family = student.family or FAMILIES[teacher.family].student or teacher.family
    architecture = dataclasses.replace(
        teacher,
        family=family,
        channels=student.channels_for(image_size),
        image_size=image_size,
        norm=student.norm,
    )
    if family == teacher.family:
        return architecture
    return dataclasses.replace(architecture, num_clusters=None, extra_layers=None)


def check_student_score(score: ScoreSettings, stages: Sequence[Stage]) -> None:
    """Check that some stage trains the student's discriminator if that is what is scored.

    Raises:
        KdganError: None does.
    """
    if score.uses_discriminator and not any(stage.loss_set.nu > 0 for stage in stages):
        raise KdganError(
            "A score on the student's discriminator needs a stage that trains it",
            f"got the schedule {'->'.join(stage.name for stage in stages)}",
            "Choose structure 2 or 4, such as 2->3, or other score.features",
        )
