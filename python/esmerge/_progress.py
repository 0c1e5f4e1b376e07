"""How a merge goes on, for people: a line that moves, on a terminal and in a notebook."""

import re
import sys
from contextlib import contextmanager
from typing import NamedTuple

LINE = re.compile(r"\[ *(\d+)%\] ([\d.]+) of ([\d.]+) MB(?:, (\d+) s left)?  (.*)")


class Progress(NamedTuple):
    """How far a merge is: share from 0 to 1, seconds that it will still take (``None`` at the start), the layer."""

    share: float
    left: object
    layer: str


@contextmanager
def shown(progress):
    """What hears the program's lines, for the time that it runs."""
    if progress is False or progress is None:
        yield None
        return
    show = progress if callable(progress) else _Line()

    def hear(line):
        found = LINE.match(line)
        if found:
            left = found.group(4)
            show(Progress(int(found.group(1)) / 100, left and int(left), found.group(5)))
        elif line.startswith("warning: "):
            print(line, file=sys.stderr)

    try:
        yield hear
    finally:
        if isinstance(show, _Line):
            show.end()


class _Line:
    """Written over itself where that can be done."""

    def __init__(self):
        self.moves = sys.stderr.isatty() or "ipykernel" in sys.modules
        self.width = 0

    def __call__(self, progress):
        if not self.moves:
            return
        left = "" if progress.left is None else f", {progress.left} s left"
        text = f"{progress.share:4.0%}{left}: {progress.layer}"[:100]
        print("\r" + text.ljust(self.width), end="", file=sys.stderr, flush=True)
        self.width = len(text)

    def end(self):
        if self.width:
            print("\r" + " " * self.width + "\r", end="", file=sys.stderr, flush=True)
