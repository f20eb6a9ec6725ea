import numpy as np
import pytest
import torch
from PIL import Image

from kdgan_compress.api import pictures as module
from kdgan_compress.api.pictures import pictures
from kdgan_compress.data import DataSettings, load_split
from kdgan_compress.errors import KdganError
from kdgan_compress.evaluation import encode
from kdgan_compress.experiment.checkpoint import Checkpoint, save_checkpoint
from kdgan_compress.gans import Architecture, build


def model(folder, family="cvgad", num_test=14, image_channels=1):
    """A model file with fresh weights, and data of flat images whose levels tell them apart."""
    levels = np.linspace(10, 240, num_test)[:, None, None].repeat(20, 1).repeat(20, 2).astype(np.uint8)
    labels = (np.arange(num_test) % 3 > 0).astype(int)
    np.savez(folder / "set.npz", x_train=levels[:1], y_train=labels[:1], x_test=levels, y_test=labels)
    architecture = Architecture(
        family=family,
        channels=(1, 2),
        image_size=16,
        image_channels=image_channels,
        latent_size=8,
        norm="batch",
        num_clusters=12 if family == "cvgad" else None,
    )
    weights = {name: network.state_dict() for name, network in build(architecture).networks().items()}
    data = DataSettings(f"npz:{folder / 'set.npz'}", "0")
    save_checkpoint(folder / "run" / "model.safetensors", Checkpoint(architecture, data, 1.0, "", {}, weights))
    return folder / "run"


@pytest.mark.parametrize(("family", "image_channels"), [("cvgad", 1), ("cvgad", 3), ("ede", 1)])
def test_pictures_are_written_next_to_the_model(tmp_path, family, image_channels):
    run = model(tmp_path, family, image_channels=image_channels)
    made = pictures(run)
    names = ["reconstructions", "neighbours", *(["clusters"] if family == "cvgad" else [])]
    assert {path.name for path in run.iterdir()} == {"model.safetensors", *(f"{name}.png" for name in names)}
    for name in names:
        assert getattr(made, name) == str(run / f"{name}.png")
        with Image.open(run / f"{name}.png") as picture:
            picture.load()
            assert picture.format == "PNG"
            assert 300 < picture.size[0] < 3000
            assert 200 < picture.size[1] < 2000
    if family == "ede":
        assert made.clusters is None


def test_another_folder_and_the_same_bytes_again(tmp_path):
    run = model(tmp_path)
    made = [pictures(run / "model.safetensors", tmp_path / name) for name in ("a", "b")]
    assert [path.name for path in run.iterdir()] == ["model.safetensors"]
    for name in ("reconstructions", "neighbours", "clusters"):
        paths = [getattr(one, name) for one in made]
        first, second = (np.asarray(Image.open(path)) for path in paths)
        np.testing.assert_array_equal(first, second)


def test_neighbours_are_nearest_and_farthest_in_latent_space(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(module, "plot_rows", lambda rows, titles, path: drawn.append((rows, titles)))
    run = model(tmp_path)
    pictures(run)
    checkpoint = module.load_model(run)
    images = load_split(checkpoint.data, 16, 1).test
    codes = encode(checkpoint.build(), images).numpy()
    (rows, titles), (clusters, _) = drawn
    assert len(rows) == 6
    assert len(titles) == 3
    number_of = {int(image[0, 0, 0]): number for number, image in enumerate(images)}
    for row in rows:
        (query,), nearest, farthest = (
            [number_of[round(255 * float(image[0, 0, 0]))] for image in group] for group in row.groups
        )
        distance = {n: np.linalg.norm(codes[n] - codes[query]) for n in range(len(codes)) if n != query}
        order = sorted(distance, key=distance.get)
        assert np.allclose([distance[n] for n in nearest], [distance[n] for n in order[:10]])
        assert np.allclose([distance[n] for n in farthest], [distance[n] for n in order[-10:]])

    generator = checkpoint.build().generator
    assert [row.label for row in clusters] == [f"mean {number}" for number in range(10)]  # of 12
    with torch.no_grad():
        for row, mean in zip(clusters, generator.means, strict=False):
            torch.testing.assert_close(row.groups[0], (generator.decoder(mean[None]) + 1) / 2)
            assert row.groups[1].shape == (12, 1, 16, 16)
            assert not torch.equal(row.groups[1][0], row.groups[1][1])


def test_pictures_need_test_images(tmp_path):
    run = model(tmp_path)
    with np.load(tmp_path / "set.npz") as data:
        arrays = dict(data)
    np.savez(tmp_path / "set.npz", **arrays | {"x_test": arrays["x_test"][:0], "y_test": arrays["y_test"][:0]})
    with pytest.raises(KdganError, match="need at least two test images; found 0"):
        pictures(run)
    assert [path.name for path in run.iterdir()] == ["model.safetensors"]


def test_a_single_test_image_has_no_neighbour(tmp_path):
    with pytest.raises(KdganError, match="at least two test images; found 1"):
        pictures(model(tmp_path, num_test=1))


@pytest.mark.parametrize("num_test", [2, 3])
def test_few_test_images_are_enough(tmp_path, num_test):
    assert pictures(model(tmp_path, num_test=num_test)).neighbours.endswith("neighbours.png")
