"""What one attempt opens, where that is audited."""

from __future__ import annotations

import select
import time
from collections.abc import Sequence

from .sandbox.audit import Audit

_SECONDS = 0.05  # to wake up for each opened file would cost the job more than the audit itself


class Reads:
    """A list of opened files, which is read some times a second."""

    def __init__(self, audit: Audit, layers: Sequence[str]) -> None:
        """Of the layers with these roots, in the order in which the audit has their mounts."""
        self.opened: set[str] = set()
        self.due: float | None = None  # when to listen again: time.monotonic()
        self._audit = audit
        self._layers = layers

    def fileno(self) -> int:
        """Becomes readable when a file was opened."""
        return self._audit.fileno()

    def read(self) -> bool:
        """Take what there is. False: there is no need to listen for a while."""
        for opened in self._audit.read():
            self.opened.add(f"{self._layers[opened.mount]}/{opened.path}")
        self.due = time.monotonic() + _SECONDS
        return False

    def listen_again(self, poll: select.poll) -> None:
        """If it is time for that."""
        if self.due is not None and time.monotonic() >= self.due:
            self.due = None
            poll.register(self.fileno(), select.POLLIN)

    @property
    def complete(self) -> bool:
        """Whether the kernel has told of all of them."""
        return self._audit.complete
