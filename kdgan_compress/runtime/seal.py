"""A file's own hash inside it, so that a detector that was changed is noticed before it scores anything.

The metadata entry ``file_sha256`` is the SHA-256 of the file's bytes with that entry's own 64 digits as zeros.
"""

import hashlib
import re

SEAL_KEY = "file_sha256"
OPEN_SEAL = "0" * 64
"""What stands in the place of the hash while it is computed."""


def seal(content: bytes) -> bytes:
    """Put the hash of a file that carries ``OPEN_SEAL`` once into its place."""
    assert content.count(OPEN_SEAL.encode()) == 1, "an open seal stands in the file once"
    return content.replace(OPEN_SEAL.encode(), hashlib.sha256(content).hexdigest().encode())


def find_seal(content: bytes) -> str | None:
    """The seal in a file's bytes as they stand, since bytes that were changed can crash what parses them; None if none.

    Key and value are the fields 1 and 2 of one protobuf message.
    """
    found = re.search(SEAL_KEY.encode() + rb"\x12\x40([0-9a-f]{64})", content)
    return None if found is None else found[1].decode()


def is_intact(content: bytes, digest: str) -> bool:
    """Whether a file's bytes are those that ``digest``, the seal found in it, was made of."""
    return hashlib.sha256(content.replace(digest.encode(), OPEN_SEAL.encode())).hexdigest() == digest
