"""What is logged, for probes in ComfyUI's interpreter, which has no pytest."""

from __future__ import annotations

import logging


class Records(logging.Handler):
    """Keeps the texts of all records from its level on."""

    def __init__(self, level: int = logging.NOTSET):
        super().__init__(level)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
