"""Data in: rows of instruction c, input z and response y, read from the files people have."""

from instructjax.data.example import Example, Message, Role
from instructjax.data.formats import FORMATS, detect_format
from instructjax.data.readers import read_examples
from instructjax.data.rejects import Reject, RejectsFile

__all__ = [
    "FORMATS",
    "Example",
    "Message",
    "Reject",
    "RejectsFile",
    "Role",
    "detect_format",
    "read_examples",
]
