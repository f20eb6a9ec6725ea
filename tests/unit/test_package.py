"""The Python API of the package: names, version, and what importing it does not do."""

import importlib.metadata
import subprocess
import sys

import pytest

import kdgan_compress


@pytest.mark.parametrize("name", kdgan_compress.__all__)
def test_every_public_name_can_be_imported(name):
    assert getattr(kdgan_compress, name) is not None
    assert name in dir(kdgan_compress)


def test_the_version_is_that_of_the_distribution():
    assert kdgan_compress.__version__ == importlib.metadata.version("kdgan-compress")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'kdgan_compress' has no attribute 'nonsense'"):
        _ = kdgan_compress.nonsense


def test_importing_the_package_changes_no_environment_and_loads_nothing_heavy():
    code = """
import os, sys
before = dict(os.environ)
import kdgan_compress
assert dict(os.environ) == before
print(sorted({"torch", "onnxruntime", "numpy"} & set(sys.modules)))
kdgan_compress.KdganError, kdgan_compress.__version__, dir(kdgan_compress)
print(sorted({"torch", "onnxruntime", "numpy"} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["[]", "[]"]
