"""Standard output and error as they may be: closed, full, a pipe without a reader, a code page without Unicode."""

import codecs
import io
import os
import re
import sys

ESCAPE_ERRORS = "kdgan-escape"
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
SURROGATE = re.compile("[\ud800-\udfff]")
FIRST_RAW_BYTE, LAST_RAW_BYTE = "\udc80", "\udcff"
"""How Python stores the bytes of a file name that is not Unicode."""


def prepare_streams() -> None:
    """Make stdout and stderr exist and accept any text.

    A character that the encoding lacks is written as an escape such as ``\\u56fe``, and the bytes of a file name that
    is not Unicode are written as they are.
    """
    codecs.register_error(ESCAPE_ERRORS, _escape)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed before the program began
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8", errors=ESCAPE_ERRORS))  # noqa: PTH123, SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ESCAPE_ERRORS)


def abandon(stream: object) -> None:
    """Let what a stream has not written yet go to nowhere, so that ending the program does not fail again."""
    if isinstance(stream, io.TextIOWrapper):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def one_line(text: str) -> str:
    """A text in which line breaks and other control characters, as a file's name may have them, are escaped."""
    return UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def escape_surrogates(text: str) -> str:
    r"""A JSON text that is valid UTF-8: bytes of a name that is not Unicode become escapes such as ``\udce9``."""
    return SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def has_unicode(stream: object) -> bool:
    """Whether a stream can encode every character."""
    return "utf" in (getattr(stream, "encoding", None) or "utf-8").lower()


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    assert isinstance(error, UnicodeEncodeError), "only output is escaped"
    text = error.object[error.start : error.end]
    is_raw = all(FIRST_RAW_BYTE <= character <= LAST_RAW_BYTE for character in text)
    handler = codecs.lookup_error("surrogateescape" if is_raw else "backslashreplace")
    if not is_raw and len(text) > 1:  # one character at a time, since some may be raw bytes
        error.end = error.start + 1
        return _escape(error)
    return handler(error)
