"""Puts off importing the real requests until something is fetched.

A node's configuration is on a disk, so at boot nothing usually is. cloud-init
imports requests all the same; what it touches before it fetches anything is a name
for annotations and the module of exceptions.
"""

import importlib
import sys

from requests import exceptions

_HERE = __path__[0]


class Response:
    """For annotations only; real responses come from the real module."""


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return getattr(_real(), name)


def _real():
    """Imports the real module in place of this one, and returns it."""
    ours = {key: sys.modules.pop(key) for key in ("requests", "requests.exceptions")}
    path = sys.path[:]
    sys.path[:] = [entry for entry in path if not _HERE.startswith(entry + "/")]
    try:
        real = importlib.import_module("requests")
    except BaseException:
        sys.modules.update(ours)
        raise
    finally:
        sys.path[:] = path
    # Whoever holds our modules finds the real classes in them from now on.
    vars(exceptions).update(vars(real.exceptions))
    globals().update({key: value for key, value in vars(real).items() if not key.startswith("__")})
    return real
