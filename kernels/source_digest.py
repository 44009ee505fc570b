"""A hash of the text of the code that makes programs, for the keys under which they are kept."""

from __future__ import annotations

import hashlib
import os
from functools import cache

from staticgrad import graph


@cache
def source_digest(backend: str) -> str:
    """A hash of the code that makes programs: a change to planning, lowering or vector maths changes every key."""
    digest = hashlib.sha256()
    kernels = os.path.dirname(__file__)
    for folder in (kernels, os.path.dirname(graph.__file__)):
        found = []
        for below, folders, names in os.walk(folder):
            if below == kernels:
                folders[:] = [name for name in folders if name in (backend, "vector_math")]
            found += [os.path.join(below, name) for name in names if name.endswith(".py")]
        for path in sorted(found):
            with open(path, "rb", buffering=0) as file:
                text = file.read()
            digest.update(f"{path.removeprefix(folder)} {len(text)}\n".encode())
            digest.update(text)
    return digest.hexdigest()[:16]
