"""Files: written atomically; read with bounds on their size, whoever wrote them."""

from kdgan_compress.files.arrays import ArrayHeader, read_array_header, read_arrays
from kdgan_compress.files.atomic import atomic_path, atomic_paths, unwritable, write_text, write_together
from kdgan_compress.files.home import expand_user
from kdgan_compress.files.reading import BoundedFile, check_regular, parse_json, read_bytes, read_text
from kdgan_compress.files.relative import absolute_path, relative_path
from kdgan_compress.files.scratch import scratch_folder
from kdgan_compress.files.stale import lock, remove_stale_files

__all__ = [
    "ArrayHeader",
    "BoundedFile",
    "absolute_path",
    "atomic_path",
    "atomic_paths",
    "check_regular",
    "expand_user",
    "lock",
    "parse_json",
    "read_array_header",
    "read_arrays",
    "read_bytes",
    "read_text",
    "relative_path",
    "remove_stale_files",
    "scratch_folder",
    "unwritable",
    "write_text",
    "write_together",
]
