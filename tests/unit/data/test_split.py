import numpy as np
import pytest
import torch
from PIL import Image

from kdgan_compress.data import DataSettings, load_split, native_channels
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
    assert split.test_is_novel.tolist() == [True, False, True, False, True]
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
    assert (split.test_classes[~split.test_is_novel] == "sneaker").all()
    assert (split.test_classes[split.test_is_novel] != "sneaker").all()


@pytest.mark.parametrize(
    ("source", "normal", "message"),
    [
        ("fashion-mnist", None, "must have a normal class; got none"),
        ("fashion-mnist", "10", "got '10'. Choose a number below 10 or one of t-shirt"),
        ("fashion-mnist", "-1", "got '-1'"),
        ("fashion-mnist", "hat", "got 'hat'"),
        ("fashion-mnist", "9", "must have training images; found none of class 9"),
        ("npz", None, "must have a normal class; got none"),
        ("npz", "dress", "got 'dress'. Choose a number"),
        ("npz", "2", "must have training images; found none of class 2"),
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
    assert split.test_is_novel.tolist() == [True, False, False, True]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_folder_pixels_are_pillows_to_two_levels(bottle, channels, mode):
    """One level from the resize and one from luma."""
    split = load_split(settings(bottle), SIZE, channels)
    files = ["train/good/000.png", "train/good/001.png", "train/good/more/002.bmp"]
    for name, ours in zip(files, split.train, strict=True):
        with Image.open(bottle / name) as image:
            theirs = np.asarray(image.convert(mode).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
        theirs = theirs.reshape(SIZE, SIZE, channels).transpose(2, 0, 1)
        assert np.abs(ours.numpy().astype(int) - theirs).max() <= 2


def test_folder_without_test(tmp_path):
    save_image(tmp_path / "train/good/a.png", 20, 20)
    split = load_split(settings(tmp_path), SIZE, 1)
    assert split.train.shape == (1, 1, SIZE, SIZE)
    assert split.test.shape == (0, 1, SIZE, SIZE)
    assert (len(split.test_is_novel), len(split.test_classes)) == (0, 0)
    assert not split.is_labelled


def test_folder_without_train_good(tmp_path):
    save_image(tmp_path / "good/a.png", 20, 20)
    for read in (lambda data: load_split(data, SIZE, 1), native_channels):
        with pytest.raises(KdganError, match=r"must have train/good .*Put photos of good parts there"):
            read(settings(tmp_path))


def test_folder_with_an_empty_train_good(tmp_path):
    (tmp_path / "train/good").mkdir(parents=True)
    with pytest.raises(KdganError, match="must hold images"):
        load_split(settings(tmp_path), SIZE, 1)


@pytest.mark.parametrize("place", ["train/good", "test/dent"])
def test_folder_with_text_called_png(bottle, place):
    (bottle / place / "fake.png").write_text("not an image")
    with pytest.raises(KdganError, match=r"fake\.png: not an image"):
        load_split(settings(bottle), SIZE, 1)


def test_folder_with_a_tiny_image_names_it(bottle):
    save_image(bottle / "test/dent/tiny.png", 7, 30)
    with pytest.raises(KdganError, match=r"at least 8×8 .*tiny\.png: got 7×30"):
        load_split(settings(bottle), SIZE, 1)


def test_folder_with_another_normal_class(bottle):
    with pytest.raises(KdganError, match="got --normal dent"):
        load_split(DataSettings(f"folder:{bottle}", normal="dent"), SIZE, 1)
    assert len(load_split(DataSettings(f"folder:{bottle}", normal="good"), SIZE, 1).train) == 3


@pytest.mark.parametrize(("shape", "channels"), [((20, 20), 1), ((20, 20, 3), 3)])
def test_native_channels_of_a_folder_are_its_first_images(tmp_path, shape, channels):
    save_image(tmp_path / "train/good/a.png", *shape)
    save_image(tmp_path / "train/good/b.png", 20, 20, *([3] if channels == 1 else []))
    assert native_channels(settings(tmp_path)) == channels


@pytest.mark.parametrize(("shape", "channels"), [((20, 20), 1), ((20, 20, 1), 1), ((20, 20, 3), 3)])
def test_native_channels_of_an_npz(tmp_path, shape, channels):
    save_npz(tmp_path / "set.npz", x_train=noise(6, *shape))
    assert native_channels(DataSettings(f"npz:{tmp_path / 'set.npz'}")) == channels


@pytest.mark.parametrize(("source", "channels"), [("sample", 1), ("mnist", 1), ("fashion-mnist", 1), ("cifar10", 3)])
def test_native_channels_of_named_sets(source, channels):
    assert native_channels(DataSettings(source)) == channels


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (DataSettings(), "sample-sneaker"),
        (DataSettings("sample", "bag"), "sample-bag"),
        (DataSettings("mnist", "5"), "mnist-5"),
        (DataSettings("mnist"), "mnist"),
        (DataSettings("folder:/data/bottle/"), "bottle"),
        (DataSettings("folder:/data/bottle", "good"), "bottle"),
        (DataSettings("npz:/data/parts.npz", "2"), "parts-2"),
    ],
)
def test_name(data, name):
    assert data.name == name


def test_absolute_paths_hold_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert DataSettings("folder:photos/bottle", "good").absolute() == DataSettings(
        f"folder:{tmp_path / 'photos/bottle'}", "good"
    )
    assert DataSettings("npz:~/a.npz", "5", "data").absolute() == DataSettings(
        f"npz:{tmp_path / 'home/a.npz'}", "5", str(tmp_path / "data")
    )
    assert DataSettings("mnist", "5").absolute() == DataSettings("mnist", "5")


@pytest.mark.parametrize(
    ("source", "normal", "root", "expected"),
    [
        (None, None, None, ("mnist", "5", "/data")),
        (None, "7", None, ("mnist", "7", "/data")),
        (None, None, "/other", ("mnist", "5", "/other")),
        ("cifar10", None, None, ("cifar10", None, "/data")),
        ("cifar10", "cat", "/other", ("cifar10", "cat", "/other")),
    ],
)
def test_override(source, normal, root, expected):
    data = DataSettings("mnist", "5", "/data").override(source, normal, root)
    assert (data.source, data.normal, data.root) == expected


def test_held_out_normals_are_never_trained_on(tmp_path):
    images = np.repeat(np.arange(60, dtype=np.uint8), 32 * 32).reshape(60, 32, 32)
    labels = np.zeros(60, dtype=np.int64)
    np.savez(tmp_path / "set.npz", x_train=images, y_train=labels, x_test=images[:2], y_test=labels[:2])
    split = load_split(DataSettings(f"npz:{tmp_path / 'set.npz'}", "0"), 32, 1)
    seen, kept = (set(part[:, 0, 0, 0].tolist()) for part in (split.train, split.calibration))
    assert split.holds_out
    assert kept == {9, 19, 29, 39, 49, 59}
    assert seen == set(range(60)) - kept
