"""The default settings on the packaged sample: what the demo promises, within the spread of seeds."""

from pathlib import Path

import pytest

from kdgan_compress import distill, evaluate, export_detector, load_recipe, train
from kdgan_compress.runtime import Detector


@pytest.mark.slow
def test_teacher_and_distilled_student_reach_their_figures(tmp_path: Path) -> None:
    teacher = train(load_recipe(), tmp_path / "teacher")
    student = distill(teacher.run, load_recipe(), tmp_path / "student")
    assert teacher.auc is not None
    assert student.auc is not None
    assert teacher.auc >= 0.97
    assert teacher.auc - student.auc <= 0.02
    export_detector(student.run, tmp_path / "student.onnx")
    assert Detector(tmp_path / "student.onnx").image_size == 32
    of_file = evaluate(tmp_path / "student.onnx", data="sample", teacher=teacher.run)
    assert of_file.auc == pytest.approx(student.auc, abs=1e-4)
    assert of_file.score_spearman is not None
    assert of_file.score_spearman > 0.6
