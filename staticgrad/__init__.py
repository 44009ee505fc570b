"""staticgrad: define a model once; run it dynamically, or captured, planned and compiled into one native call."""

import os as _os

from staticgrad.graph import location as _location

_location.register_internal(_os.path.dirname(__file__))

from staticgrad import autograd, data, nn, optim, random  # noqa: E402
from staticgrad.array import *  # noqa: E402, F403
from staticgrad.array import __all__ as _array_names  # noqa: E402
from staticgrad.autograd.gradcheck import gradcheck  # noqa: E402
from staticgrad.autograd.modes import enable_grad, inference_mode, is_grad_enabled, no_grad, set_grad_enabled  # noqa: E402
from staticgrad.capture_state import scope  # noqa: E402
from staticgrad.compile import compile  # noqa: E402
from staticgrad.tensor import Tensor  # noqa: E402
from staticgrad.transforms import grad, jvp, stop_gradient, value_and_grad, vjp  # noqa: E402
from staticgrad.tree import tree_flatten, tree_map, tree_unflatten  # noqa: E402

__version__ = "0.1.0"
