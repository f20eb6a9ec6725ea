"""One function per command: the Python API, re-exported lazily by the package."""
