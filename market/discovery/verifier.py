"""A process that verifies batches of events for another one: `python -m market.discovery.verifier`.

Questions come on standard input and answers go to standard output, each as four bytes of length (big-endian) and that
many bytes. Ends with its input. Holds no secret, opens no file, speaks to nobody: what is hostile is parsed here.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import BinaryIO, Final

from market.discovery.examination import answer_questions

NICENESS: Final = 5
"""Catching up with a relay is no reason to slow an app down."""

COLLECT_EVERY: Final = 20_000
"""Objects, more than a batch has alive at once. They hold no cycles, and the collector looks for nothing else."""


def serve(questions: BinaryIO, answers: BinaryIO) -> None:
    """Until the end of the input."""
    while len(header := questions.read(4)) == 4:
        batch = questions.read(int.from_bytes(header, "big"))
        answer = answer_questions(batch)
        answers.write(len(answer).to_bytes(4, "big") + answer)
        answers.flush()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the node, which then closes our input
    os.nice(NICENESS)
    gc.freeze()
    gc.set_threshold(COLLECT_EVERY)
    serve(sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
