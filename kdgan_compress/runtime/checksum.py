"""A file's checksum inside the file, so that a modified detector is rejected before it scores anything.

The metadata entry ``file_sha256`` is the SHA-256 of the file in which the 64 digits of this entry are zeros.
"""

import hashlib
import re

CHECKSUM_KEY = "file_sha256"
CHECKSUM_PLACEHOLDER = "0" * 64
"""The digits while the checksum is computed."""


def write_checksum(content: bytes) -> bytes:
    """Replace the placeholder, which ``content`` contains once, by the file's checksum."""
    assert content.count(CHECKSUM_PLACEHOLDER.encode()) == 1, "the placeholder must occur exactly once"
    return content.replace(CHECKSUM_PLACEHOLDER.encode(), hashlib.sha256(content).hexdigest().encode())


def read_checksum(content: bytes) -> str | None:
    """Read the checksum from the raw bytes, because a damaged file can crash the parser; None if there is none.

    Key and value are the fields 1 and 2 of one protobuf message.
    """
    match = re.search(CHECKSUM_KEY.encode() + rb"\x12\x40([0-9a-f]{64})", content)
    return None if match is None else match[1].decode()


def is_intact(content: bytes, checksum: str) -> bool:
    """Whether ``checksum``, as read from the file, is that of the file's content."""
    return hashlib.sha256(content.replace(checksum.encode(), CHECKSUM_PLACEHOLDER.encode())).hexdigest() == checksum
