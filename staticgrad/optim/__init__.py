"""Optimizers and learning-rate schedules, with PyTorch's names, defaults and update formulas."""

from staticgrad.optim import lr_scheduler
from staticgrad.optim.adagrad import Adagrad
from staticgrad.optim.adam import Adam, AdamW
from staticgrad.optim.optimizer import Optimizer
from staticgrad.optim.rmsprop import RMSprop
from staticgrad.optim.sgd import SGD

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Optimizer", "RMSprop", "lr_scheduler"]
