"""Tensors of checkpoints are read without executing anything; what needs code is refused with the way to convert it."""

import collections
import shlex
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.import_file import conversion_command, read_tensors

TENSORS = {"a": torch.arange(3.0), "b": torch.ones(2, 2).t()}


class Foreign:
    """An object whose loading would execute code."""

    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: {"epoch": 3, "state_dict": t}, collections.OrderedDict])
def test_state_dicts_are_read(tmp_path, wrap):
    torch.save(wrap(TENSORS), tmp_path / "netG.pth")
    assert read_tensors(tmp_path / "netG.pth").keys() == TENSORS.keys()


def test_safetensors_are_read(tmp_path):
    save_file({name: tensor.contiguous() for name, tensor in TENSORS.items()}, tmp_path / "a.safetensors")
    assert torch.equal(read_tensors(tmp_path / "a.safetensors")["a"], TENSORS["a"])


@pytest.mark.parametrize("content", [{"state_dict": TENSORS, "transform": Foreign()}, Foreign()])
def test_nothing_is_executed_and_the_snippet_converts(tmp_path, content, capfd):
    path = tmp_path / "model.ckpt"
    torch.save(content, path)
    with pytest.raises(KdganError, match="executes code") as error:
        read_tensors(path)
    assert "executed" not in capfd.readouterr().out
    assert "\n" not in str(error.value)
    assert conversion_command(path) in str(error.value)
    if isinstance(content, dict):
        program, *arguments = shlex.split(conversion_command(path))
        assert program == "python"
        subprocess.run([sys.executable, *arguments], cwd=tmp_path, check=True)
        assert load_file(tmp_path / "model.safetensors").keys() == TENSORS.keys()


def test_the_snippet_converts_a_pickled_module(tmp_path):
    torch.save({"model": torch.nn.Linear(2, 1)}, tmp_path / "model.pt")
    with pytest.raises(KdganError, match="executes code"):
        read_tensors(tmp_path / "model.pt")
    _, *arguments = shlex.split(conversion_command(tmp_path / "model.pt"))
    subprocess.run([sys.executable, *arguments], cwd=tmp_path, check=True)
    assert read_tensors(tmp_path / "model.safetensors").keys() == {"weight", "bias"}


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04broken", b"no checkpoint at all", b"\x80\x02broken"])
@pytest.mark.parametrize("name", ["netG.pth", "model.ckpt", "model.safetensors"])
def test_damaged_files_are_refused(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(KdganError, match=r"damaged|not a file of torch"):
        read_tensors(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"import torch\n", b"\x08\x0a\x12\x00a model of ONNX"])
def test_other_files_are_not_taken_for_pickles(tmp_path, content):
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(KdganError, match="not a file of torch"):
        read_tensors(tmp_path / "model.onnx")


@pytest.mark.parametrize("content", [{}, [1, 2], {"epoch": 1}, {"state_dict": {}}, torch.ones(2)])
def test_files_without_a_state_dict_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "netG.pth")
    with pytest.raises(KdganError, match="state dict"):
        read_tensors(tmp_path / "netG.pth")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(KdganError, match="must be a file"):
        read_tensors(tmp_path / "netG.pth")
