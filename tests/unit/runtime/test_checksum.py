import hashlib

import pytest

from kdgan_compress.runtime.checksum import CHECKSUM_KEY, CHECKSUM_PLACEHOLDER, is_intact, read_checksum, write_checksum

OPEN = b"before " + CHECKSUM_KEY.encode() + b"\x12\x40" + CHECKSUM_PLACEHOLDER.encode() + b" behind"


def test_the_checksum_is_the_hash_with_zeros_in_its_place():
    digest = hashlib.sha256(OPEN).hexdigest()
    assert write_checksum(OPEN) == OPEN.replace(b"0" * 64, digest.encode())
    assert read_checksum(write_checksum(OPEN)) == digest
    assert is_intact(write_checksum(OPEN), digest)


@pytest.mark.parametrize("content", [b"", CHECKSUM_PLACEHOLDER.encode() * 2, b"none"])
def test_the_placeholder_must_occur_once(content):
    with pytest.raises(AssertionError, match="must occur exactly once"):
        write_checksum(content)


def test_every_changed_byte_is_detected():
    content = write_checksum(OPEN)
    digest = read_checksum(content)
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 1
        assert not is_intact(bytes(changed), digest)
        found = read_checksum(bytes(changed))
        assert found is None or not is_intact(bytes(changed), found)


@pytest.mark.parametrize("content", [b"", CHECKSUM_KEY.encode(), CHECKSUM_KEY.encode() + b"\x12\x40" + b"x" * 64])
def test_no_checksum(content):
    assert read_checksum(content) is None
