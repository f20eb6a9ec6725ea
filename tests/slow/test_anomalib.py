"""A Ganomaly of anomalib itself, trained for a few steps there: imported, distilled to width 2 and exported."""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from kdgan_compress import distill, export_detector, import_checkpoint, load_recipe
from kdgan_compress.evaluation import score_images
from kdgan_compress.experiment.checkpoint import load_checkpoint
from kdgan_compress.runtime import Detector

sys.path.insert(0, str(Path(__file__).parents[1] / "reference"))
from synthetic_parts import draw_part

SIDE = 64


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for part, number, defect in (("train/good", 32, None), ("test/good", 8, None), ("test/defect", 8, "scratch")):
        (tmp_path / "parts" / part).mkdir(parents=True)
        for index in range(number):
            photo = draw_part(rng, defect)[0].resize((SIDE, SIDE))
            photo.save(tmp_path / "parts" / part / f"{index:02}.png")
    return tmp_path / "parts"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_an_imported_model_of_anomalib_scores_as_in_anomalib(parts: Path, tmp_path: Path) -> None:
    data = pytest.importorskip("anomalib.data", reason="anomalib is not installed", exc_type=ImportError)
    from anomalib.engine import Engine
    from anomalib.models import Ganomaly

    pre_processor = Ganomaly.configure_pre_processor((SIDE, SIDE))
    model = Ganomaly(batch_size=8, n_features=8, latent_vec_size=20, pre_processor=pre_processor, visualizer=False)
    folders = {"normal_dir": "train/good", "abnormal_dir": "test/defect", "normal_test_dir": "test/good"}
    sizes = {"train_batch_size": 8, "eval_batch_size": 8, "num_workers": 0}
    engine = Engine(max_epochs=2, default_root_dir=tmp_path / "anomalib", accelerator="cpu", devices=1, logger=False)
    engine.fit(model=model, datamodule=data.Folder(name="parts", root=parts, **folders, **sizes))
    engine.trainer.save_checkpoint(tmp_path / "model.ckpt")

    imported = import_checkpoint(tmp_path / "model.ckpt", tmp_path / "teacher", data=f"folder:{parts}")
    photos = [np.asarray(Image.open(path)) for path in sorted(parts.glob("test/*/*.png"))]
    images = torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2).contiguous()
    scorer = load_checkpoint(Path(imported.model)).scorer()
    with torch.no_grad():
        expected = model.eval().model(model.pre_processor.transform(images.float() / 255)).pred_score
    np.testing.assert_allclose(score_images(scorer, images), expected.numpy(), rtol=1e-5)

    path = engine.export(model=model, export_type="onnx", export_root=tmp_path / "anomalib")
    (exported, _) = onnxruntime.InferenceSession(str(path)).run(None, {"input": images.float().numpy() / 255})
    export_detector(imported.run, tmp_path / "teacher.onnx")
    detector = Detector(tmp_path / "teacher.onnx").score(images.permute(0, 2, 3, 1).contiguous().numpy()).score
    np.testing.assert_allclose(detector, expected.numpy(), rtol=1e-4)
    post = model.post_processor  # anomalib's file has scores from 0 to 1, with its threshold at 0.5
    scaled = (detector - float(post.image_threshold)) / float(post.image_max - post.image_min) + 0.5
    np.testing.assert_allclose(exported, scaled.clip(0, 1), atol=1e-3)

    changes = {"distillation": {"student": {"width": 2}, "training": {"num_images": 320}}, "score": {"type": "norm"}}
    student = distill(imported.run, load_recipe().replace(changes), tmp_path / "student")
    export_detector(student.run, tmp_path / "student.onnx")
    assert Detector(tmp_path / "student.onnx").image_size == SIDE
