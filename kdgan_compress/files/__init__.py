"""Files: written atomically; read with bounds on their size, whoever wrote them."""

from kdgan_compress.files.arrays import ArrayHeader, read_array_header, read_arrays
from kdgan_compress.files.atomic import atomic_path, unwritable, write_text
from kdgan_compress.files.reading import BoundedFile, check_regular, parse_json, read_bytes, read_text

__all__ = [
    "ArrayHeader",
    "BoundedFile",
    "atomic_path",
    "check_regular",
    "parse_json",
    "read_array_header",
    "read_arrays",
    "read_bytes",
    "read_text",
    "unwritable",
    "write_text",
]
