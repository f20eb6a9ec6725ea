import numpy as np
import pytest
import torch
from PIL import Image

from kdgan_compress.data import DataSettings, load_split, native_channels
from kdgan_compress.data import datasets as datasets_module
from kdgan_compress.data.prepare import resize
from kdgan_compress.data.protocols import coil100, gpnd_5fold, miso_8020, ocgan_p1, simo
from kdgan_compress.errors import KdganError

SIZE = 16


@pytest.fixture(autouse=True)
def _torch_repeats_its_warnings():
    """Torch warns only once per process by default, so that only the first test to run would see it."""
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


def save_npz(path, **changed) -> dict[str, np.ndarray]:
    content = {
        "x_train": noise(6, SIZE, SIZE),
        "y_train": np.array([3, 5, 3, 1, 5, 3]),
        "x_test": noise(5, SIZE, SIZE),
        "y_test": np.array([5, 3, 0, 3, 1]),
    } | changed
    np.savez(path, **content)
    return content


def save_image(path, *shape: int) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = noise(*shape)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def bottle(tmp_path):
    """MVTec's layout with grey and coloured images of several sizes."""
    folder = tmp_path / "bottle"
    save_image(folder / "train/good/000.png", 20, 24)
    save_image(folder / "train/good/001.png", 33, 18, 3)
    save_image(folder / "train/good/more/002.bmp", 16, 16, 3)
    save_image(folder / "test/scratch/000.png", 40, 40, 3)
    save_image(folder / "test/good/000.png", 17, 29)
    save_image(folder / "test/good/001.png", 50, 30, 3)
    save_image(folder / "test/dent/000.png", 25, 25)
    save_image(folder / "test/.thumbnails/000.png", 20, 20)
    save_image(folder / "ground_truth/scratch/000.png", 40, 40)
    (folder / "train/good/notes.txt").write_text("not an image")
    return folder


def settings(folder) -> DataSettings:
    return DataSettings(f"folder:{folder}")


def test_npz_under_simo(tmp_path):
    content = save_npz(tmp_path / "set.npz")
    split = load_split(DataSettings(f"npz:{tmp_path / 'set.npz'}", normal="3"), SIZE, 1)
    np.testing.assert_array_equal(split.train[:, 0].numpy(), content["x_train"][[0, 2, 5]])
    np.testing.assert_array_equal(split.test[:, 0].numpy(), content["x_test"])
    assert split.test_is_anomalous.tolist() == [True, False, True, False, True]
    assert split.test_classes.tolist() == ["5", "3", "0", "3", "1"]
    assert split.is_labelled


def test_npz_without_test_images(tmp_path):
    save_npz(tmp_path / "set.npz", x_test=noise(0, SIZE, SIZE), y_test=np.zeros(0, int))
    split = load_split(DataSettings(f"npz:{tmp_path / 'set.npz'}", normal="3"), SIZE, 3)
    assert split.test.shape == (0, 3, SIZE, SIZE)
    assert not split.is_labelled


@pytest.mark.parametrize(("y_test", "labelled"), [([3, 3], False), ([1, 5], False), ([1, 3], True)])
def test_labelled_means_both_kinds(tmp_path, y_test, labelled):
    save_npz(tmp_path / "set.npz", x_test=noise(2, SIZE, SIZE), y_test=np.array(y_test))
    split = load_split(DataSettings(f"npz:{tmp_path / 'set.npz'}", normal="3"), SIZE, 1)
    assert split.is_labelled is labelled


@pytest.mark.parametrize("normal", ["dress", "3"])
def test_class_by_name_or_number(tmp_path, normal):
    content = save_npz(tmp_path / "fashion-mnist.npz")
    split = load_split(DataSettings("fashion-mnist", normal, str(tmp_path)), SIZE, 1)
    np.testing.assert_array_equal(split.train[:, 0].numpy(), content["x_train"][[0, 2, 5]])
    assert split.test_classes.tolist() == ["sandal", "dress", "t-shirt", "dress", "trouser"]


def test_samples_normal_class_is_sneaker():
    split = load_split(DataSettings("sample"), SIZE, 1)
    by_number = load_split(DataSettings("sample", "7"), SIZE, 1)
    assert torch.equal(split.train, by_number.train)
    assert (split.test_classes[~split.test_is_anomalous] == "sneaker").all()
    assert (split.test_classes[split.test_is_anomalous] != "sneaker").all()


@pytest.mark.parametrize(
    ("source", "normal", "message"),
    [
        ("fashion-mnist", None, "needs a normal class; got none"),
        ("fashion-mnist", "10", "got '10'. Choose a number below 10 or one of t-shirt"),
        ("fashion-mnist", "-1", "got '-1'"),
        ("fashion-mnist", "hat", "got 'hat'"),
        ("fashion-mnist", "9", "needs training images; found none of class 9"),
        ("npz", None, "needs a normal class; got none"),
        ("npz", "dress", "got 'dress'. Choose a number"),
        ("npz", "2", "needs training images; found none of class 2"),
    ],
)
def test_bad_normal_class(tmp_path, source, normal, message):
    save_npz(tmp_path / "fashion-mnist.npz")
    source = f"npz:{tmp_path / 'fashion-mnist.npz'}" if source == "npz" else source
    with pytest.raises(KdganError) as caught:
        load_split(DataSettings(source, normal, str(tmp_path)), SIZE, 1)
    assert message in str(caught.value)


@pytest.mark.parametrize("label", [10, -1])
def test_label_without_a_name(tmp_path, label):
    """Label −1 must not quietly become the last class."""
    save_npz(tmp_path / "mnist.npz", y_test=np.array([5, 3, 0, 3, label]))
    with pytest.raises(KdganError, match=str(label)):
        load_split(DataSettings("mnist", "3", str(tmp_path)), SIZE, 1)


def test_home_folder_is_understood(tmp_path, monkeypatch, bottle):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_npz(tmp_path / "mnist.npz")
    assert len(load_split(DataSettings("npz:~/mnist.npz", "5"), SIZE, 1).train) == 2
    assert len(load_split(DataSettings("mnist", "5", "~"), SIZE, 1).train) == 2
    assert len(load_split(DataSettings("folder:~/bottle"), SIZE, 1).train) == 3


@pytest.mark.parametrize("channels", [1, 3])
def test_folder_layout(bottle, channels):
    split = load_split(settings(bottle), SIZE, channels)
    assert split.train.shape == (3, channels, SIZE, SIZE)
    assert split.test.shape == (4, channels, SIZE, SIZE)
    assert split.train.dtype == split.test.dtype == torch.uint8
    assert split.test_classes.tolist() == ["dent", "good", "good", "scratch"]
    assert split.test_is_anomalous.tolist() == [True, False, False, True]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_folder_pixels_are_pillows_to_two_levels(bottle, channels, mode):
    """One level from the resize and one from luma."""
    split = load_split(settings(bottle), SIZE, channels)
    files = ["train/good/000.png", "train/good/001.png", "train/good/more/002.bmp"]
    for name, image_read in zip(files, split.train, strict=True):
        with Image.open(bottle / name) as image:
            expected = np.asarray(image.convert(mode).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
        expected = expected.reshape(SIZE, SIZE, channels).transpose(2, 0, 1)
        assert np.abs(image_read.numpy().astype(int) - expected).max() <= 2


def test_folder_without_test(tmp_path):
    save_image(tmp_path / "train/good/a.png", 20, 20)
    split = load_split(settings(tmp_path), SIZE, 1)
    assert split.train.shape == (1, 1, SIZE, SIZE)
    assert split.test.shape == (0, 1, SIZE, SIZE)
    assert (len(split.test_is_anomalous), len(split.test_classes)) == (0, 0)
    assert not split.is_labelled


def test_folder_without_train_good(tmp_path):
    save_image(tmp_path / "day1/a.png", 20, 20)
    for read in (lambda data: load_split(data, SIZE, 1), native_channels):
        with pytest.raises(KdganError, match=r"needs train/good .*Put photos of good parts there"):
            read(settings(tmp_path))


def test_folder_with_an_empty_train_good(tmp_path):
    (tmp_path / "train/good").mkdir(parents=True)
    with pytest.raises(KdganError, match="found no photo to train on"):
        load_split(settings(tmp_path), SIZE, 1)


@pytest.mark.parametrize("subfolder", ["train/good", "test/dent"])
def test_folder_with_text_called_png(bottle, subfolder):
    (bottle / subfolder / "fake.png").write_text("not an image")
    with pytest.raises(KdganError, match=r"fake\.png: not an image"):
        load_split(settings(bottle), SIZE, 1)


def test_folder_with_a_tiny_image_names_it(bottle):
    save_image(bottle / "test/dent/tiny.png", 5, 30)
    with pytest.raises(KdganError, match=r"at least 6×6 .*tiny\.png: got 5×30"):
        load_split(settings(bottle), SIZE, 1)


def test_folder_with_another_normal_class(bottle):
    with pytest.raises(KdganError, match="got --normal dent"):
        load_split(DataSettings(f"folder:{bottle}", normal="dent"), SIZE, 1)
    assert len(load_split(DataSettings(f"folder:{bottle}", normal="good"), SIZE, 1).train) == 3


@pytest.mark.parametrize(("coloured", "channels"), [([], 1), ([0], 3), ([4], 3), (range(5), 3)])
def test_native_channels_of_a_folder_are_3_if_any_training_image_has_a_colour(tmp_path, coloured, channels):
    for number in range(5):
        save_image(tmp_path / f"train/good/{number}.png", 20, 20, *([3] if number in coloured else []))
    save_image(tmp_path / "test/dent/0.png", 20, 20, 3)
    assert native_channels(settings(tmp_path)) == channels


@pytest.mark.parametrize(("shape", "channels"), [((20, 20), 1), ((20, 20, 1), 1), ((20, 20, 3), 3)])
def test_native_channels_of_an_npz(tmp_path, shape, channels):
    save_npz(tmp_path / "set.npz", x_train=noise(6, *shape))
    assert native_channels(DataSettings(f"npz:{tmp_path / 'set.npz'}")) == channels


@pytest.mark.parametrize(("source", "channels"), [("sample", 1), ("mnist", 1), ("fashion-mnist", 1), ("cifar10", 3)])
def test_native_channels_of_named_sets(source, channels):
    assert native_channels(DataSettings(source)) == channels


def test_held_out_images_are_never_trained_on(tmp_path):
    images = np.repeat(np.arange(60, dtype=np.uint8), 32 * 32).reshape(60, 32, 32)
    labels = np.zeros(60, dtype=np.int64)
    np.savez(tmp_path / "set.npz", x_train=images, y_train=labels, x_test=images[:2], y_test=labels[:2])
    split = load_split(DataSettings(f"npz:{tmp_path / 'set.npz'}", "0"), 32, 1)
    seen, kept = (set(part[:, 0, 0, 0].tolist()) for part in (split.train, split.calibration))
    assert split.has_holdout
    assert kept == {9, 19, 29, 39, 49, 59}
    assert seen == set(range(60)) - kept


def stamped(num: int, start: int = 0) -> np.ndarray:
    """Images whose every pixel is their number in the pool."""
    return np.repeat(np.arange(start, start + num, dtype=np.uint8), SIZE * SIZE).reshape(-1, SIZE, SIZE)


def save_pool(path, images: np.ndarray, labels: np.ndarray) -> None:
    """A set without an official test split."""
    np.savez(path, x_train=images, y_train=labels, x_test=images[:0], y_test=labels[:0])


def numbers(images: torch.Tensor) -> list[int]:
    return images[:, 0, 0, 0].tolist()


@pytest.fixture
def pool(tmp_path):
    """mnist with 40 training and 20 test images of classes 0 to 3."""
    y_train, y_test = np.arange(40) % 4, np.arange(20) % 4
    np.savez(tmp_path / "mnist.npz", x_train=stamped(40), y_train=y_train, x_test=stamped(20, 40), y_test=y_test)
    return str(tmp_path), np.concatenate([y_train, y_test])


@pytest.mark.parametrize(
    ("settings", "choose"),
    [
        ({"normal": "2"}, lambda labels: simo(labels, 40, 2)),
        ({"protocol": "miso-8020", "novel": "3", "trial": 4}, lambda labels: miso_8020(labels, 3, 4)),
        ({"protocol": "gpnd-5fold", "normal": "1", "trial": 8}, lambda labels: gpnd_5fold(labels, 1, 0.5, 8)),
        ({"protocol": "gpnd-5fold", "normal": "1", "outliers": 0.2}, lambda labels: gpnd_5fold(labels, 1, 0.2, 0)),
        ({"protocol": "coil100", "trial": 2}, lambda labels: coil100(labels, 1, 0.5, 2)),
        ({"protocol": "coil100", "num_categories": 2, "outliers": 0.3}, lambda labels: coil100(labels, 2, 0.3, 0)),
        ({"protocol": "ocgan-p1", "normal": "0", "trial": 5}, lambda labels: ocgan_p1(labels, 0, 5)),
    ],
)
def test_protocols_take_their_images_out_of_the_pool(pool, settings, choose):
    root, labels = pool
    expected = choose(labels)
    split = load_split(DataSettings("mnist", root=root, **settings), SIZE, 1)
    assert numbers(split.train) == expected.train.tolist()
    assert numbers(split.test) == expected.test.tolist()
    assert split.test_is_anomalous.tolist() == expected.test_is_anomalous.tolist()
    assert split.test_classes.tolist() == [str(labels[index]) for index in expected.test]
    assert split.split_sha256 == expected.sha256
    assert split.is_labelled


def test_validation_images_find_the_threshold(pool):
    root, labels = pool
    split = load_split(DataSettings("mnist", "1", root, "gpnd-5fold"), SIZE, 1)
    assert numbers(split.calibration) == gpnd_5fold(labels, 1, 0.5, 0).validation.tolist()
    assert len(split.calibration) == 3
    assert split.has_holdout


def test_a_protocol_without_validation_has_holdout_of_a_small_set(tmp_path):
    save_pool(tmp_path / "mnist.npz", stamped(150), np.array([0] * 100 + [1] * 50))
    split = load_split(DataSettings("mnist", "0", str(tmp_path), "ocgan-p1"), SIZE, 1)
    assert (len(split.train), len(split.calibration), len(split.test)) == (72, 8, 40)
    assert set(numbers(split.train)).isdisjoint(numbers(split.calibration))


def test_official_splits_of_two_shapes_are_one_pool(tmp_path):
    save_npz(
        tmp_path / "set.npz",
        x_train=noise(6, SIZE, SIZE),
        y_train=np.array([0, 1] * 3),
        x_test=noise(6, 20, 24, 3),
        y_test=np.array([0, 1] * 3),
    )
    split = load_split(DataSettings(f"npz:{tmp_path / 'set.npz'}", "0", protocol="ocgan-p1"), SIZE, 3)
    assert split.train.shape == (5, 3, SIZE, SIZE)
    assert split.test.shape == (2, 3, SIZE, SIZE)


def test_only_the_images_that_are_used_are_resized(tmp_path, monkeypatch):
    save_pool(tmp_path / "set.npz", stamped(100), np.array([0] * 10 + [1] * 90))
    resized = []

    def spy(pixels, size):
        resized.append(len(pixels))
        return resize(pixels, size)

    monkeypatch.setattr(datasets_module, "resize", spy)
    load_split(DataSettings(f"npz:{tmp_path / 'set.npz'}", "0", protocol="ocgan-p1"), SIZE, 1)
    assert sum(resized) == 8 + 2 + 2


def test_folders_have_no_fingerprint(bottle):
    assert load_split(settings(bottle), SIZE, 1).split_sha256 is None


@pytest.mark.parametrize("novel", ["deer", "4"])
def test_novel_class_by_name_or_number(tmp_path, novel):
    save_pool(tmp_path / "cifar10.npz", noise(10, SIZE, SIZE, 3), np.array([3, 4] * 5))
    split = load_split(DataSettings("cifar10", root=str(tmp_path), protocol="miso-8020", novel=novel), SIZE, 3)
    assert split.test_classes[split.test_is_anomalous].tolist() == ["deer"] * 5
    assert split.test_classes[~split.test_is_anomalous].tolist() == ["cat"]


@pytest.mark.parametrize(
    ("novel", "message"),
    [
        (None, "needs a novel class; got none. Give --novel"),
        ("hat", "The novel class of mnist must be one of its classes; got 'hat'"),
        ("9", "The novel class needs images; found none of class 9. Classes with images are 0, 1, 2, 3"),
    ],
)
def test_bad_novel_class(pool, novel, message):
    with pytest.raises(KdganError) as caught:
        load_split(DataSettings("mnist", root=pool[0], protocol="miso-8020", novel=novel), SIZE, 1)
    assert message in str(caught.value)


@pytest.mark.parametrize("protocol", ["coil100", "ocgan-p1"])
def test_coil100_in_colour(tmp_path, protocol):
    objects = np.repeat(np.arange(1, 6), 5)
    np.savez(tmp_path / "coil100.npz", images=noise(25, SIZE, SIZE, 3), object=objects, angle=np.tile(np.arange(5), 5))
    data = DataSettings("coil100", "obj2" if protocol == "ocgan-p1" else None, str(tmp_path), protocol)
    split = load_split(data, SIZE, native_channels(data))
    assert split.train.shape == ((3, 3, SIZE, SIZE) if protocol == "coil100" else (4, 3, SIZE, SIZE))
    assert len(set(split.test_classes[~split.test_is_anomalous].tolist())) == 1
    assert (split.test_classes[split.test_is_anomalous] != "obj2").all() or protocol == "coil100"
