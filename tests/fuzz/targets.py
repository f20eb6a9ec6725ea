"""Every parser with valid files to change. A parser may accept a file or raise KdganError; nothing else."""

import io
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mutations import (
    mutate_bytes,
    mutate_detector,
    mutate_json,
    mutate_lines,
    mutate_npy,
    mutate_safetensors,
    mutate_text,
    mutate_zip,
)
from PIL import Image

ROOT = Path(__file__).parents[2]
EXPORT = ROOT / "exports" / "sneaker-1-2-4"
QUANTIZED = ROOT / "exports" / "ship-8-16-64"

Mutate = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Target:
    """A parser.

    Attributes:
        seeds: Contents of valid files.
        mutate: Changes one.
        parse: Called with the path of the changed file.
        suffix: Of the file's name.
        weight: How many of all inputs it gets, relative to the others.
    """

    seeds: Sequence[bytes]
    mutate: Mutate
    parse: Callable[[Path], object]
    suffix: str = ""
    weight: float = 1.0


def make_targets(folder: Path) -> dict[str, Target]:
    """All targets; ``folder`` is for the files that they need."""
    return {
        "recipe": Target(_recipes(), mutate_text, _parse_recipe, ".yaml", 1.0),
        "setting": Target(_settings(), mutate_text, _parse_setting, "", 1.0),
        "metrics": Target([_metrics()], mutate_lines, _parse_metrics, "", 1.5),
        "result": Target([_result()], mutate_json, _parse_result, "", 1.5),
        "checkpoint": Target(_checkpoints(folder), mutate_safetensors, _parse_checkpoint, ".safetensors", 1.0),
        "imported": Target([_torch_file()], mutate_zip, _parse_imported, ".pth", 1.0),
        "state": _state_target(folder),
        "cache": _cache_target(folder),
        "npz": Target([_npz(np.savez), _npz(np.savez_compressed)], mutate_zip, _parse_npz, ".npz", 1.5),
        "scores": Target([_scores()], mutate_zip, _parse_scores, ".npz", 1.0),
        "golden": Target([(EXPORT / "golden.npz").read_bytes()], mutate_zip, _parse_golden, ".npz", 1.5),
        "image": Target(_images(), mutate_bytes, _parse_image, "", 1.5),
        "detector": Target([_detector(EXPORT), _detector(QUANTIZED)], mutate_detector, _parse_detector, ".onnx", 1.0),
        "card": Target([(EXPORT / "card.md").read_bytes()], mutate_text, _parse_card, ".md", 0.5),
    }


def _recipes() -> list[bytes]:
    from kdgan_compress.experiment.recipe import load_recipe

    shipped = [path.read_bytes() for path in sorted((ROOT / "recipes").glob("*.yaml"))]
    return [*shipped, load_recipe("default").to_yaml().encode()]


def _parse_recipe(path: Path) -> None:
    from kdgan_compress.experiment.recipe import load_recipe

    load_recipe(str(path)).to_yaml()


def _settings() -> list[bytes]:
    texts = ("training.batch_size=1e20", "objective.w_adv=0", "distillation.schedule=2->3", "data.tiles.frame=[64,64]")
    return [text.replace("=", ": ", 1).encode() for text in texts]


def _parse_setting(path: Path) -> None:
    import click

    from kdgan_compress.cli.options import Setting
    from kdgan_compress.experiment.recipe import load_recipe

    text = path.read_bytes().decode("utf-8", "surrogateescape").replace(": ", "=", 1)
    try:
        changes = Setting().convert(text, None, None)
    except click.UsageError:
        return
    load_recipe().replace(changes).to_yaml()


def _metrics() -> bytes:
    line = {"stage_index": 0, "stage": "2", "epoch": 1, "num_images": 15, "seconds": 0.5, "images_per_s": 30.0}
    lines = [line | {"epoch": epoch, "s_con": 0.7, "auc": None, "auc_raw": 0.5} for epoch in range(1, 4)]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def _parse_metrics(path: Path) -> None:
    from kdgan_compress.experiment.metrics_file import is_epoch, read_lines

    for line in filter(is_epoch, read_lines(path)):
        (line["stage_index"], line["epoch"]) <= (0, 1)  # noqa: B015  # as a resumed run compares them
        sum([line["num_images"], line["seconds"]])


def _result() -> bytes:
    values = {"run": "r", "model": "r/m", "auc": 0.9, "auc_raw": None, "epochs": 2, "num_images": 30, "seconds": 1.5}
    more = {"images_per_s": 20.0, "seed": 0, "threads": 1, "machine": "x", "fleet": 1, "score": "one Gaussian"}
    return json.dumps(values | more).encode()


def _parse_result(path: Path) -> None:
    from kdgan_compress.experiment.results import RunResults, read_result
    from kdgan_compress.experiment.run_folder import RunFolder

    folder = RunFolder(path.parent)
    folder.result = path
    result = read_result(folder)
    assert result is not None
    RunResults({"r": result}).all()


def _checkpoints(folder: Path) -> list[bytes]:
    from kdgan_compress.data import DataSettings, TileSettings
    from kdgan_compress.experiment.checkpoint import Checkpoint, save_checkpoint
    from kdgan_compress.gans import Architecture, build
    from kdgan_compress.scores import Gaussian, ScoreSettings

    tiles = TileSettings(frame=(32, 32), stride=8)
    contents = []
    for family, clusters, data in (("ede", None, DataSettings("folder:x", tiles=tiles)), ("cvgad", 2, DataSettings())):
        architecture = Architecture(family=family, channels=(1, 1), image_size=16, latent_size=4, num_clusters=clusters)
        weights = {name: network.state_dict() for name, network in build(architecture).networks().items()}
        statistic = Gaussian(projection=torch.eye(4), offset=torch.zeros(4)) if family == "ede" else None
        score = ScoreSettings("gaussian" if family == "ede" else "norm")
        provenance = {"command": "train", "teacher": None, "seed": 0}
        checkpoint = Checkpoint(architecture, data, 0.5, "rule", provenance, weights, score, statistic)
        save_checkpoint(folder / f"{family}.safetensors", checkpoint)
        contents.append((folder / f"{family}.safetensors").read_bytes())
    return contents


def _parse_checkpoint(path: Path) -> None:
    from kdgan_compress.experiment.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(path)
    checkpoint.scorer()
    checkpoint.build_without_ema()
    checkpoint.provenance.get("teacher")
    _ = checkpoint.data.name, checkpoint.sha256, checkpoint.grid


def _torch_file() -> bytes:
    stream = io.BytesIO()
    torch.save({"state_dict": {"a.weight": torch.rand(3, 2), "a.bias": torch.zeros(3)}, "epoch": 3}, stream)
    return stream.getvalue()


def _parse_imported(path: Path) -> None:
    from kdgan_compress.experiment.import_file import read_tensors

    read_tensors(path)


def _state_target(folder: Path) -> Target:
    from kdgan_compress.experiment.job import training_job
    from kdgan_compress.experiment.recipe import parse_recipe
    from kdgan_compress.experiment.training_run import TrainingRun

    recipe = parse_recipe(
        {
            "data": {"source": f"npz:{folder / 'set.npz'}", "normal": "0"},
            "model": {"channels": [1, 1], "image_size": 16, "latent_size": 2},
            "training": {"epochs": 2, "threads": 1},
        },
        "fuzz",
    )
    (folder / "set.npz").write_bytes(_npz(np.savez))
    job = training_job(recipe, folder / "run")
    job.scheduler.begin_stage()
    run = TrainingRun(job, track_auc=False, raw=False)
    state = job.scheduler.state_dict() | {"experiment": run.experiment}
    within = state | {
        "format": 4,
        "within_epoch": {"steps": 1, "num_images": 8, "seconds": 0.1, "sums": {"s": (1.0, 8)}},
    }
    seeds = []
    for each in (state, within):
        job.folder.save_state(each)
        seeds.append(job.folder.state.read_bytes())

    def parse(path: Path) -> None:
        job.folder.state = path
        run.load_state(job.folder)

    return Target(seeds, mutate_zip, parse, ".pt", 0.7)


def _cache_target(folder: Path) -> Target:
    from kdgan_compress.accel.cache_folder import CacheFolder

    cache = CacheFolder(folder / "cache", 100)
    cache.save("k", {"z1": (4,), "x_hat": (1, 2)}, 10, "float32", [torch.rand(10, 6)])
    rows, metadata = folder / "cache" / "k.npy", folder / "cache" / "k.json"
    array, text = rows.read_bytes(), metadata.read_bytes()
    values = json.loads(text)

    def mutate(content: bytes, rng: random.Random) -> bytes:
        """The rows, and the hash that belongs to them; or the description."""
        import hashlib

        if rng.random() < 0.4:
            metadata.write_bytes(mutate_json(text, rng))
            return content
        changed = mutate_npy(content, rng)
        shapes = repr([(name, list(shape)) for name, shape in values["shapes"].items()]).encode()
        metadata.write_text(json.dumps(values | {"sha256": hashlib.sha256(changed + shapes).hexdigest()}))
        return changed

    def parse(path: Path) -> None:
        rows.write_bytes(path.read_bytes())
        cache.load("k")

    return Target([array], mutate, parse, ".npy", 1.0)


def _npz(save: Callable[..., None]) -> bytes:
    rng, stream = np.random.default_rng(0), io.BytesIO()
    images, labels = rng.integers(0, 256, (12, 16, 16), dtype=np.uint8), np.arange(12) % 2
    save(stream, x_train=images, y_train=labels, x_test=images, y_test=labels)
    return stream.getvalue()


def _parse_npz(path: Path) -> None:
    from kdgan_compress.data import DataSettings, load_split

    load_split(DataSettings(f"npz:{path}", "0"), 16, 1)


def _scores() -> bytes:
    stream = io.BytesIO()
    texts = {"weights_sha256": "a", "test_sha256": "b", "data": "{}"}
    np.savez(
        stream,
        calibration_scores=np.zeros(3),
        test_scores=np.ones(4),
        test_is_anomalous=np.array([True, False, True, False]),
        test_classes=np.array(["bag", "boot", "bag", "boot"]),
        **texts,
    )
    return stream.getvalue()


def _parse_scores(path: Path) -> None:
    from kdgan_compress.evaluation.score_file import load_scores

    scores = load_scores(path)
    if scores is not None:
        _ = list(map(str, scores.test_classes)), scores.test_is_anomalous.sum()


def _parse_golden(path: Path) -> None:
    from kdgan_compress.export.validation.golden import read_golden

    golden = read_golden(path)
    assert len(golden.images) == len(golden.score) == len(golden.is_anomaly)


def _images() -> list[bytes]:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    formats = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "AVIF", "JPEG2000", "ICO", "TGA", "DDS")
    contents = []
    for name in formats:
        stream = io.BytesIO()
        try:
            image.save(stream, name)
        except (OSError, KeyError):  # a Pillow without this format
            continue
        contents.append(stream.getvalue())
    return contents


def _parse_image(path: Path) -> None:
    from kdgan_compress.runtime.images import is_coloured, read_image, upright_size

    upright_size(path)
    is_coloured(path)
    read_image(path, 1, near=(16, 16))


def _detector(folder: Path) -> bytes:
    return (folder / f"{folder.name}.onnx").read_bytes()


def _parse_detector(path: Path) -> None:
    from kdgan_compress.runtime import Detector
    from kdgan_compress.runtime.onnx_file import replace_threshold

    detector = Detector(path)
    shape = (2, *(detector.input_size or (20, 30)), detector.image_channels)
    detector.score(np.zeros(shape, np.uint8), maps=detector.has_anomaly_map)
    replace_threshold(path.read_bytes(), 1.0, "rule")


def _parse_card(path: Path) -> None:
    from kdgan_compress.export.packaging.card import replace_latency
    from kdgan_compress.export.packaging.card_update import read_detector_name
    from kdgan_compress.files import read_text
    from kdgan_compress.profiling.latency import Latency

    try:
        text = read_text(path, 1_000_000)
    except ValueError:
        return
    read_detector_name(text)
    replace_latency(text, {"this file": Latency(1.0, 1.0)}, "machine")
