"""staticgrad: define a model once; run it dynamically, or captured, planned and compiled into one native call."""

import os as _os

_here = _os.path.dirname(__file__)
if not _os.path.isdir(_os.path.join(_here, "graph")):  # a checkout: the stages lie beside this folder, not inside it
    __path__.append(_os.path.dirname(_here))

from staticgrad.graph import location as _location  # noqa: E402

_location.register_internal(_here)

from staticgrad import array, autograd, cuda, data, nn, optim, random  # noqa: E402
from staticgrad.array import *  # noqa: E402, F403
from staticgrad.autograd.gradcheck import gradcheck  # noqa: E402
from staticgrad.autograd.modes import (  # noqa: E402
    enable_grad,
    inference_mode,
    is_grad_enabled,
    no_grad,
    set_grad_enabled,
)
from staticgrad.capture_state import scope  # noqa: E402
from staticgrad.checkpoint import Checkpoint, load_checkpoint, save_checkpoint  # noqa: E402
from staticgrad.compare import compare  # noqa: E402
from staticgrad.compile import compile  # noqa: E402
from staticgrad.saved import load  # noqa: E402
from staticgrad.saving import load_file, save_file  # noqa: E402
from staticgrad.tensor import Tensor  # noqa: E402
from staticgrad.transforms import grad, jvp, stop_gradient, value_and_grad, vjp  # noqa: E402
from staticgrad.tree import tree_flatten, tree_map, tree_unflatten  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "Checkpoint",
    "Tensor",
    "autograd",
    "compare",
    "compile",
    "cuda",
    "data",
    "enable_grad",
    "grad",
    "gradcheck",
    "inference_mode",
    "is_grad_enabled",
    "jvp",
    "load",
    "load_checkpoint",
    "load_file",
    "nn",
    "no_grad",
    "optim",
    "random",
    "save_checkpoint",
    "save_file",
    "scope",
    "set_grad_enabled",
    "stop_gradient",
    "tree_flatten",
    "tree_map",
    "tree_unflatten",
    "value_and_grad",
    "vjp",
]
__all__ += array.__all__
