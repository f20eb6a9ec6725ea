"""``python -m kdgan_compress``."""

from kdgan_compress.cli.main import main

main()
