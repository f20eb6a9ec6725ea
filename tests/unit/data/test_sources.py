import io
import os
import pickle
import sys
import types

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from kdgan_compress.data import sources
from kdgan_compress.data.sources import SAMPLE, open_source
from kdgan_compress.errors import KdganError


def read(source, root=None):
    return open_source(source, root).read()


def arrays(**changed) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    whole = {
        "x_train": generator.integers(0, 256, (6, 20, 18), dtype=np.uint8),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": generator.integers(0, 256, (4, 20, 18), dtype=np.uint8),
        "y_test": np.array([2, 1, 0, 2]),
    }
    return whole | changed


def read_bytes(folder, content: bytes):
    path = folder / "set.npz"
    path.write_bytes(content)
    return read(f"npz:{path}", None)


def zipped(content: dict[str, np.ndarray], save=np.savez) -> bytes:
    file = io.BytesIO()
    save(file, **content)
    return file.getvalue()


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, flag):
        self.flag = flag

    def __reduce__(self):
        return os.mkdir, (str(self.flag),)


@pytest.mark.parametrize("shape", [(20, 18), (20, 18, 1), (20, 18, 3)])
@pytest.mark.parametrize("labels", [np.uint8, np.int32, np.int64])
def test_npz_is_read(tmp_path, shape, labels):
    content = arrays(
        x_train=np.random.default_rng(1).integers(0, 256, (6, *shape), dtype=np.uint8),
        y_train=np.arange(6, dtype=labels),
    )
    dataset = read_bytes(tmp_path, zipped(content))
    for key, value in content.items():
        np.testing.assert_array_equal(getattr(dataset, key), value)
    assert (dataset.x_train.dtype, dataset.y_train.dtype, dataset.y_test.dtype) == (np.uint8, np.int64, np.int64)


@pytest.mark.parametrize("key", ["x_train", "y_train", "x_test", "y_test"])
def test_npz_without_a_key_is_refused_in_one_clean_message(tmp_path, key):
    content = arrays()
    del content[key]
    with pytest.raises(KdganError) as caught:
        read_bytes(tmp_path, zipped(content))
    assert caught.value.problem == "An .npz data set must hold x_train, y_train, x_test, y_test"
    assert caught.value.found == f"{tmp_path / 'set.npz'} lacks {key}"


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"x_train": np.zeros((6, 20, 18))}, "x_train .* float64"),
        ({"x_test": np.zeros((4, 20, 18), np.int8)}, "x_test .* int8"),
        ({"x_train": np.zeros((6, 360), np.uint8)}, r"x_train .* \(6, 360\)"),
        ({"x_train": np.zeros((6, 3, 20, 18), np.uint8)}, r"x_train .* \(6, 3, 20, 18\)"),
        ({"x_test": np.zeros((4, 20, 18, 4), np.uint8)}, r"x_test .* \(4, 20, 18, 4\)"),
        ({"x_train": np.uint8(7)}, r"x_train .* \(\)"),
        ({"y_train": np.arange(5)}, r"y_train .* \(5,\) for 6 images"),
        ({"y_test": np.zeros((4, 1), int)}, r"y_test .* \(4, 1\) for 4 images"),
        ({"y_test": np.zeros(4)}, "y_test .* float64"),
        ({"y_train": np.zeros(6, bool)}, "y_train .* bool"),
    ],
)
def test_npz_with_wrong_arrays_says_which(tmp_path, changed, found):
    with pytest.raises(KdganError, match=found):
        read_bytes(tmp_path, zipped(arrays(**changed)))


@pytest.mark.parametrize("whole_file", [False, True])
def test_pickles_are_never_executed(tmp_path, whole_file):
    trap = Trap(tmp_path / "sprung")
    content = pickle.dumps(trap) if whole_file else zipped(arrays(y_train=np.array([trap] * 6, dtype=object)))
    with pytest.raises(KdganError, match="can't be read"):
        read_bytes(tmp_path, content)
    assert not trap.flag.exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_cut_npz_is_refused(tmp_path, save, share):
    content = zipped(arrays(), save)
    with pytest.raises(KdganError, match=r"set\.npz can't be read"):
        read_bytes(tmp_path, content[: int(share * len(content))])


def test_damaged_compressed_npz_is_refused(tmp_path):
    pattern = np.arange(6 * 400).astype(np.uint8).reshape(6, 20, 20)
    content = bytearray(zipped(arrays(x_train=pattern), np.savez_compressed))
    content[100:120] = b"\xff" * 20
    with pytest.raises(KdganError, match=r"set\.npz can't be read"):
        read_bytes(tmp_path, bytes(content))


def test_npz_of_an_unknown_compression_is_refused(tmp_path):
    content = bytearray(zipped(arrays()))
    method = content.rindex(b"PK\x01\x02") + 10  # in the zip's directory, the last member's entry
    content[method : method + 2] = b"\x63\0"
    with pytest.raises(KdganError, match=r"set\.npz can't be read"):
        read_bytes(tmp_path, bytes(content))


def test_single_array_is_no_npz(tmp_path):
    file = io.BytesIO()
    np.save(file, np.zeros((2, 20, 20), np.uint8))
    with pytest.raises(KdganError, match=r"An \.npz data set must hold"):
        read_bytes(tmp_path, file.getvalue())


def test_text_is_no_npz(tmp_path):
    with pytest.raises(KdganError, match="can't be read"):
        read_bytes(tmp_path, b"x_train,y_train\n")


def test_missing_npz(tmp_path):
    with pytest.raises(KdganError, match="must exist; found none at"):
        read(f"npz:{tmp_path / 'absent.npz'}", None)


def test_sample_is_small_and_licensed():
    assert SAMPLE.stat().st_size < 1.5e6
    licence = (SAMPLE.parent / "LICENSE").read_text(encoding="utf-8")
    assert "MIT" in licence
    assert "Zalando" in licence


def test_sample_suffices_for_a_demo():
    sample = read("sample", None)
    assert sample.x_train.shape[1:] == sample.x_test.shape[1:] == (28, 28)
    assert np.bincount(sample.y_train).max() >= 1000
    assert set(sample.y_test.tolist()) == set(range(10))
    assert len(sample.class_names) == 10


def test_unknown_source_lists_the_known():
    with pytest.raises(KdganError, match=r"got 'imagenet'\. Choose one of sample, mnist"):
        read("imagenet", None)


@pytest.fixture
def offline(monkeypatch):
    """torchvision's sets replaced by tiny ones; the calls that were made."""
    calls = []

    def fake(name, data, targets):
        def read(root, train, download):
            calls.append((name, root, train, download))
            return types.SimpleNamespace(
                data=data[:2] if train else data[2:], targets=targets[:2] if train else targets[2:]
            )

        monkeypatch.setattr(torchvision.datasets, name, read)

    generator = np.random.default_rng(0)
    grey = torch.from_numpy(generator.integers(0, 256, (5, 28, 28), dtype=np.uint8))
    fake("MNIST", grey, torch.tensor([3, 1, 4, 1, 5]))
    fake("FashionMNIST", 255 - grey, torch.tensor([9, 2, 6, 5, 3]))
    fake("CIFAR10", generator.integers(0, 256, (5, 32, 32, 3), dtype=np.uint8), [8, 6, 7, 5, 3])
    return calls


@pytest.mark.parametrize(
    ("source", "name", "shape", "y_train", "y_test"),
    [
        ("mnist", "MNIST", (28, 28), [3, 1], [4, 1, 5]),
        ("fashion-mnist", "FashionMNIST", (28, 28), [9, 2], [6, 5, 3]),
        ("cifar10", "CIFAR10", (32, 32, 3), [8, 6], [7, 5, 3]),
    ],
)
def test_torchvisions_sets(tmp_path, offline, source, name, shape, y_train, y_test):
    dataset = read(source, tmp_path)
    assert dataset.x_train.shape == (2, *shape)
    assert dataset.x_test.shape == (3, *shape)
    assert dataset.x_train.dtype == np.uint8
    assert (dataset.y_train.tolist(), dataset.y_test.tolist()) == (y_train, y_test)
    assert offline == [(name, str(tmp_path), True, True), (name, str(tmp_path), False, True)]


def test_npz_in_the_root_is_preferred(tmp_path, offline):
    np.savez(tmp_path / "mnist.npz", **arrays())
    np.testing.assert_array_equal(read("mnist", tmp_path).x_train, arrays()["x_train"])
    assert offline == []


def test_root_defaults_to_the_users_cache(tmp_path, offline, monkeypatch):
    np.savez(tmp_path / "cifar10.npz", **arrays())
    monkeypatch.setattr(sources, "DEFAULT_ROOT", tmp_path)
    assert read("cifar10", None).y_test.tolist() == [2, 1, 0, 2]
    assert offline == []


class Clash(types.ModuleType):
    """A torchvision that does not fit torch: everything in it fails."""

    def __getattr__(self, name):
        raise RuntimeError("operator torchvision::nms does not exist")


@pytest.mark.parametrize(("module", "reason"), [(None, "torchvision"), (Clash("torchvision"), "nms does not exist")])
def test_torchvision_that_fails_to_import(tmp_path, monkeypatch, module, reason):
    monkeypatch.setitem(sys.modules, "torchvision", module)
    with pytest.raises(KdganError, match=rf"mnist needs a torchvision that fits torch; .*{reason}.*npz:PATH"):
        read("mnist", tmp_path)


@pytest.mark.parametrize("error", [OSError("no route to host"), RuntimeError("file not found"), TimeoutError()])
def test_failed_download(tmp_path, monkeypatch, error):
    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr(torchvision.datasets, "MNIST", fail)
    with pytest.raises(KdganError, match="mnist must be in the data root or downloadable") as caught:
        read("mnist", tmp_path)
    assert str(error) in caught.value.found


def coil(num: int = 6, **changed) -> dict[str, np.ndarray]:
    """COIL-100's keys, in no order."""
    images = np.random.default_rng(3).integers(0, 256, (num, 16, 16, 3), dtype=np.uint8)
    objects, angles = np.array([3, 100, 3, 1, 1, 100][:num]), np.array([10, 5, 5, 355, 0, 0][:num])
    return {"images": images, "object": objects, "angle": angles} | changed


COIL_ORDER = [4, 3, 2, 0, 5, 1]


def test_coil100_npz_is_read_by_object_and_angle(tmp_path):
    np.savez(tmp_path / "coil100.npz", **coil())
    dataset = read("coil100", tmp_path)
    assert dataset.y_train.tolist() == [0, 0, 2, 2, 99, 99]
    np.testing.assert_array_equal(dataset.x_train, coil()["images"][COIL_ORDER])
    assert (dataset.x_test.shape, dataset.y_test.shape) == ((0, 16, 16, 3), (0,))
    assert (dataset.y_train.dtype, dataset.y_test.dtype, dataset.x_test.dtype) == (np.int64, np.int64, np.uint8)
    assert [dataset.class_names[label] for label in (0, 99)] == ["obj1", "obj100"]


def test_coil100s_original_files_are_the_same_set(tmp_path):
    content = coil()
    (tmp_path / "coil-100").mkdir()
    for image, number, angle in zip(*content.values(), strict=True):
        Image.fromarray(image).save(tmp_path / f"coil-100/obj{number}__{angle}.png")
    (tmp_path / "coil-100/convertGroupppm2png.pl").write_text("not an image")
    Image.fromarray(content["images"][0]).save(tmp_path / "coil-100/contact-sheet.png")
    dataset = read("coil100", tmp_path)
    np.savez(tmp_path / "coil100.npz", **content)
    for key in ("x_train", "y_train", "x_test", "y_test"):
        np.testing.assert_array_equal(getattr(dataset, key), getattr(read("coil100", tmp_path), key))


def test_coil100_says_where_to_put_it(tmp_path):
    (tmp_path / "coil-100").mkdir()
    with pytest.raises(KdganError, match=r"found neither .*coil100\.npz nor .*coil-100/obj<k>__<angle>\.png.*Unpack"):
        read("coil100", tmp_path)


def test_coil100_files_of_two_sizes_are_refused(tmp_path):
    (tmp_path / "coil-100").mkdir()
    for number, size in ((1, 16), (2, 20)):
        Image.fromarray(np.zeros((size, 16, 3), np.uint8)).save(tmp_path / f"coil-100/obj{number}__0.png")
    with pytest.raises(KdganError, match=r"need one size; .*(20×16.*16×16|16×16.*20×16)"):
        read("coil100", tmp_path)


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"images": np.zeros((6, 16, 16), np.uint8)}, r"images in .* is uint8 \(6, 16, 16\)"),
        ({"images": np.zeros((6, 16, 16, 1), np.uint8)}, r"images in .* is uint8 \(6, 16, 16, 1\)"),
        ({"images": np.zeros((6, 16, 16, 3))}, "images in .* is float64"),
        ({"object": np.arange(1, 6)}, r"object in .* \(5,\) for 6 images"),
        ({"angle": np.zeros(6)}, "angle in .* is float64"),
        ({"object": np.arange(6)}, "objects must be 1 to 100; .* has 0 to 5"),
        ({"object": np.arange(96, 102)}, "objects must be 1 to 100; .* has 96 to 101"),
    ],
)
def test_coil100_npz_with_wrong_arrays_says_which(tmp_path, changed, found):
    np.savez(tmp_path / "coil100.npz", **coil(**changed))
    with pytest.raises(KdganError, match=found):
        read("coil100", tmp_path)


def test_coil100_npz_without_a_key(tmp_path):
    content = coil()
    del content["angle"]
    np.savez(tmp_path / "coil100.npz", **content)
    with pytest.raises(KdganError, match=r"must hold images, object, angle; .*lacks angle"):
        read("coil100", tmp_path)
