"""One function a command: the Python API, re-exported lazily by the package."""
