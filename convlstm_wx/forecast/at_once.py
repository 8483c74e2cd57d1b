"""How many forecasts are computed at once: as many as asked for, or as many as fit into memory."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from convlstm_wx.device import DevicePolicy, is_out_of_memory
from convlstm_wx.errors import DeviceError

log = logging.getLogger(__name__)

Row = TypeVar("Row")
Made = TypeVar("Made")


class AtOnce:
    """A number of forecasts, halved each time that memory runs out.

    Args:
        policy: device.
        size: as asked for.
    """

    def __init__(self, policy: DevicePolicy, size: int):
        self.policy, self.size = policy, size

    def parts(
        self, rows: Sequence[Row], act: Callable[[Sequence[Row], int], Made], *, most: int
    ) -> Iterator[tuple[Sequence[Row], Made]]:
        """Consecutive rows, and what is made of them.

        Args:
            rows: all of them.
            act: makes something of some rows, so many at once: their number, or more where shapes are to be constant.
            most: rows that may come in one call.

        Raises:
            DeviceError: if memory does not suffice for one.
        """
        done = 0
        while done < len(rows):
            some = rows[done : done + self.size]
            try:
                made = act(some, min(self.size, most) if self.policy.constant_shapes else len(some))
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            else:
                yield some, made
                done += len(some)
                continue
            self._halve(len(some))  # only now is what was tried out of memory

    def _halve(self, tried: int) -> None:
        self.policy.free_memory()
        if tried == 1:
            raise DeviceError(
                f"too little memory on {self.policy.device} for one forecast; close other programs, or take another "
                f"--device"
            )
        self.size = (tried + 1) // 2
        log.warning("out of memory with %d forecasts at once: going on with --batch-size %d", tried, self.size)
