"""Model files: the file's content, damaged files, and atomic writing."""

import json
import os
import stat
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from kdgan_compress.data import DataSettings
from kdgan_compress.errors import KdganError
from kdgan_compress.experiment import checkpoint
from kdgan_compress.experiment.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from kdgan_compress.files import atomic_path
from kdgan_compress.gans import Architecture, build

ARCHITECTURE = Architecture(channels=(1, 2, 4), latent_size=16, norm="batch")
PROVENANCE = {"role": "student", "teacher": "Straße/µ", "seed": 3, "versions": {"torch": "2"}}


def weights_of(architecture, seed):
    return {name: network.state_dict() for name, network in build(architecture, seed).networks().items()}


def make_checkpoint(**weights):
    weights = weights_of(ARCHITECTURE, 1) | {"raw": weights_of(ARCHITECTURE, 2)["generator"]} | weights
    data = DataSettings("mnist", "5", "/data")
    return Checkpoint(ARCHITECTURE, data, 0.1 + 0.2, "in words", PROVENANCE, weights)


def read_header(path):
    """A safetensors file starts with the length of its JSON header."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length])


def rewrite(path, **header):
    """The same file with another header of this package's."""
    content = json.loads(read_header(path)["__metadata__"]["kdgan_compress"]) | header
    save_file(load_file(path), path, metadata={"kdgan_compress": json.dumps(content)})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "model.safetensors"


@pytest.fixture
def saved(path):
    save_checkpoint(path, make_checkpoint())
    return path


def check_error(path, match):
    with pytest.raises(KdganError, match=match) as info:
        load_checkpoint(path)
    message = str(info.value)
    assert str(path) in message
    assert "\n" not in message
    assert info.value.hint


def test_round_trip_is_exact(saved):
    saved_checkpoint, loaded = make_checkpoint(), load_checkpoint(saved)
    for field in ("architecture", "data", "threshold", "threshold_rule"):
        assert getattr(loaded, field) == getattr(saved_checkpoint, field)
    teacher = saved_checkpoint.provenance["teacher"]
    assert loaded.provenance == saved_checkpoint.provenance | {"teacher": str(saved.parent / teacher)}
    assert set(loaded.weights) == {"generator", "raw", "discriminator"}
    for network, expected in saved_checkpoint.weights.items():
        torch.testing.assert_close(loaded.weights[network], dict(expected), rtol=0, atol=0)
    assert loaded.weights["generator"]["encoder.features.1.num_batches_tracked"].dtype == torch.int64


def test_networks_are_built_with_their_own_weights(saved):
    loaded = load_checkpoint(saved)
    averaged, raw = loaded.build(), loaded.build_without_ema()
    expected = weights_of(ARCHITECTURE, 1)
    torch.testing.assert_close(averaged.generator.state_dict(), expected["generator"], rtol=0, atol=0)
    torch.testing.assert_close(averaged.discriminator.state_dict(), expected["discriminator"], rtol=0, atol=0)
    torch.testing.assert_close(raw.generator.state_dict(), weights_of(ARCHITECTURE, 2)["generator"], rtol=0, atol=0)
    networks = [*averaged.networks().values(), raw.generator]
    assert not any(module.training for network in networks for module in network.modules())


def test_without_raw_weights_there_is_no_raw_gan(path):
    plain = weights_of(ARCHITECTURE, 1)
    save_checkpoint(path, Checkpoint(ARCHITECTURE, DataSettings(), 1.0, "", {}, plain))
    assert load_checkpoint(path).build_without_ema() is None


def test_the_header_is_json_with_everything_to_know(saved):
    header = read_header(saved)
    assert json.loads(header["__metadata__"]["kdgan_compress"]) == {
        "format": 2,
        "architecture": {
            "family": "ede",
            "channels": [1, 2, 4],
            "image_channels": 1,
            "image_size": 32,
            "latent_size": 16,
            "norm": "batch",
            "num_clusters": None,
            "extra_layers": None,
        },
        "data": {
            "source": "mnist",
            "normal": "5",
            "root": os.path.relpath("/data", saved.parent),
            "protocol": "simo",
            "novel": None,
            "trial": 0,
            "outliers": None,
            "num_categories": None,
            "tiles": None,
        },
        "score": {
            "type": "norm",
            "features": None,
            "num_components": None,
            "num_pca": 64,
            "positions": "auto",
            "rank": 64,
            "photo": "max",
        },
        "statistic": None,
        "threshold": 0.30000000000000004,
        "threshold_rule": "in words",
        "provenance": PROVENANCE,
    }
    assert header["raw.encoder2.head.weight"]["shape"] == [16, 4, 4, 4]
    assert header["discriminator.encoder.head.weight"]["shape"] == [1, 4, 4, 4]
    assert {name.partition(".")[0] for name in header} == {"__metadata__", "generator", "raw", "discriminator"}


def test_a_file_from_before_protocols_and_clusters_is_read(saved):
    content = json.loads(read_header(saved)["__metadata__"]["kdgan_compress"])
    del content["architecture"]["num_clusters"]
    rewrite(saved, architecture=content["architecture"], data={"source": "mnist", "normal": "5", "root": "/data"})
    loaded = load_checkpoint(saved)
    assert loaded.architecture == ARCHITECTURE
    assert loaded.data == make_checkpoint().data


def test_round_trip_of_a_cvgad_under_a_protocol(path):
    architecture = Architecture(family="cvgad", channels=(1, 2, 4), latent_size=16, norm="batch", num_clusters=3)
    weights = weights_of(architecture, 1)
    weights["generator"]["score_scale"] = torch.tensor([0.5, 0.25])
    data = DataSettings("coil100", root="/data", protocol="coil100", trial=4, outliers=0.25, num_categories=2)
    save_checkpoint(path, Checkpoint(architecture, data, 1.0, "", {}, weights))
    loaded = load_checkpoint(path)
    assert (loaded.architecture, loaded.data) == (architecture, data)
    generator = loaded.build().generator
    torch.testing.assert_close(dict(generator.state_dict()), weights["generator"], rtol=0, atol=0)
    assert generator.means.shape == (3, 16)


def test_clusters_that_do_not_fit_the_weights(path):
    architecture = Architecture(family="cvgad", channels=(1, 2, 4), latent_size=16, num_clusters=3)
    save_checkpoint(path, Checkpoint(architecture, DataSettings(), 1.0, "", {}, weights_of(architecture, 1)))
    content = json.loads(read_header(path)["__metadata__"]["kdgan_compress"])["architecture"]
    rewrite(path, architecture=content | {"num_clusters": 2})
    check_error(path, "weights must fit")


def test_weights_that_share_memory_or_are_not_contiguous_are_saved(path):
    weights = weights_of(ARCHITECTURE, 1)
    head = weights["generator"]["encoder.head.weight"]
    weights["generator"]["encoder.head.weight"] = head.transpose(2, 3).contiguous().transpose(2, 3)
    weights["raw"] = weights["generator"]
    save_checkpoint(path, Checkpoint(ARCHITECTURE, DataSettings(), 1.0, "", {}, weights))
    loaded = load_checkpoint(path)
    assert torch.equal(loaded.weights["raw"]["encoder.head.weight"], head)


def test_no_file(tmp_path):
    check_error(tmp_path / "none.safetensors", "The model must be a file; found none")
    check_error(tmp_path, "The model must be a file")


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, -1], ids=str)
def test_a_file_cut_short(saved, keep):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    check_error(saved, "file is damaged")


def test_a_file_of_another_kind(path):
    path.parent.mkdir()
    path.write_text("This is no model at all, but long enough to have a header.")
    check_error(path, "file is damaged")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_a_file_of_another_program(path, metadata):
    path.parent.mkdir()
    save_file({"weight": torch.zeros(2)}, path, metadata=metadata)
    check_error(path, "must come from this package")


def test_a_newer_format(saved):
    rewrite(saved, format=3)
    check_error(saved, r"must be of format 2 or older; .* has format 3\. Upgrade")


@pytest.mark.parametrize("network", ["generator", "discriminator", "raw"])
def test_weights_of_another_shape(path, network):
    wider = Architecture(channels=(2, 4, 8), latent_size=16, norm="batch")
    weights = weights_of(wider, 1)
    save_checkpoint(path, make_checkpoint(**{network: weights.get(network, weights["generator"])}))
    check_error(path, "weights must fit")


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_weights_that_are_missing(path, network):
    save_checkpoint(path, make_checkpoint(**{network: {}}))
    check_error(path, "weights must fit")


def test_a_weight_too_many(path):
    generator = weights_of(ARCHITECTURE, 1)["generator"] | {"extra": torch.zeros(1)}
    save_checkpoint(path, make_checkpoint(generator=generator))
    check_error(path, "weights must fit")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask(path, umask, mode):
    before = os.umask(umask)
    try:
        save_checkpoint(path, make_checkpoint())
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_only_the_file_is_left_behind(saved):
    save_checkpoint(saved, make_checkpoint())  # over the older one
    assert [each.name for each in saved.parent.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=str)
def test_an_interrupted_write_leaves_the_older_file(saved, monkeypatch, error):
    before = saved.read_bytes()

    def interrupt(_tensors, temporary, metadata):
        temporary.write_bytes(b"half")
        raise error

    monkeypatch.setattr(checkpoint, "save_file", interrupt)
    expected = KdganError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as info:
        save_checkpoint(saved, make_checkpoint())
    if expected is KdganError:
        assert "No space left on device" in str(info.value)
    assert saved.read_bytes() == before
    assert [each.name for each in saved.parent.iterdir()] == ["model.safetensors"]


def test_a_path_below_a_file_is_not_writable(tmp_path):
    (tmp_path / "file").write_text("content")
    with pytest.raises(KdganError, match="must be writable"):
        save_checkpoint(tmp_path / "file" / "model.safetensors", make_checkpoint())
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "content"


def test_a_folder_at_the_path_is_not_overwritten(tmp_path):
    target = tmp_path / "model.safetensors"
    (target / "inside").mkdir(parents=True)
    with pytest.raises(KdganError, match="must be writable"), atomic_path(target) as temporary:
        temporary.write_text("new")
    assert [each.name for each in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_file_appears_only_at_the_end(tmp_path):
    target = tmp_path / "text"
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
        assert temporary.parent == target.parent  # renaming never crosses file systems
    assert target.read_text() == "new"
