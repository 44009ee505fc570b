"""Automatic differentiation: the tape, the engine, grad modes, hooks and checks."""

from staticgrad.autograd.engine import backward, grad
from staticgrad.autograd.gradcheck import gradcheck, gradgradcheck
from staticgrad.autograd.hooks import RemovableHandle
from staticgrad.autograd.modes import enable_grad, inference_mode, is_grad_enabled, no_grad, set_grad_enabled

__all__ = [
    "RemovableHandle",
    "backward",
    "enable_grad",
    "grad",
    "gradcheck",
    "gradgradcheck",
    "inference_mode",
    "is_grad_enabled",
    "no_grad",
    "set_grad_enabled",
]
