import hashlib

import pytest

from kdgan_compress.runtime.seal import OPEN_SEAL, SEAL_KEY, find_seal, is_intact, seal

OPEN = b"before " + SEAL_KEY.encode() + b"\x12\x40" + OPEN_SEAL.encode() + b" behind"


def test_seal_is_the_hash_with_zeros_in_its_place():
    digest = hashlib.sha256(OPEN).hexdigest()
    assert seal(OPEN) == OPEN.replace(b"0" * 64, digest.encode())
    assert find_seal(seal(OPEN)) == digest
    assert is_intact(seal(OPEN), digest)


@pytest.mark.parametrize("content", [b"", OPEN_SEAL.encode() * 2, b"no seal"])
def test_only_one_open_seal_is_closed(content):
    with pytest.raises(AssertionError, match="stands in the file once"):
        seal(content)


def test_every_changed_byte_is_noticed():
    content = seal(OPEN)
    digest = find_seal(content)
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 1
        assert not is_intact(bytes(changed), digest)
        found = find_seal(bytes(changed))
        assert found is None or not is_intact(bytes(changed), found)


@pytest.mark.parametrize("content", [b"", SEAL_KEY.encode(), SEAL_KEY.encode() + b"\x12\x40" + b"x" * 64])
def test_no_seal_is_found(content):
    assert find_seal(content) is None
