"""The table of pointers that a program gets: one for each buffer that its plan does not own."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from staticgrad.graph.lifetimes import Place
    from staticgrad.kernels.addresses import Address

STATUS_BYTES = 64  # between the status blocks of two threads
ERROR_WORDS = 3  # status block: error code (1 + position in the error table; 0 is none), offending value, extent


class Table(NamedTuple):
    """Which entry of the pointer table is what: status, inputs, outputs, constants, error codes, in this order."""

    inputs: int
    outputs: int
    constants: int

    @property
    def size(self) -> int:
        return 2 + self.inputs + self.outputs + self.constants

    @property
    def error_codes(self) -> int:
        return self.size - 1

    @property
    def report(self) -> int:
        """The entry behind all others, where a program that nobody waits for tells the host of an error."""
        return self.size

    def entry(self, place: Place) -> int:
        """The position of an input, an output or a constant among the program's pointers."""
        before = {"input": 1, "output": 1 + self.inputs, "constant": 1 + self.inputs + self.outputs}
        return before[place.space] + place.index

    def address(self, place: Place, offset: int = 0) -> Address:
        """Where a kernel finds the bytes at `offset` from the place."""
        from staticgrad.kernels.addresses import Arena, Argument

        if place.space == "arena":
            return Arena(place.offset + offset)
        return Argument(self.entry(place), place.offset + offset)
