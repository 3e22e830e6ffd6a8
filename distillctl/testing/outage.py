"""What a loopback provider that can be down has in common with every other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Outages:
    """down: it answers nothing but 503."""

    down = False

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Nothing but 503 inside."""
        self.down = True
        try:
            yield
        finally:
            self.down = False
