"""Signals that stop a run at a safe place."""

import signal

import jax


class Interruption:
    """Records SIGTERM and SIGINT inside its context; a second signal acts as it would outside."""

    def __init__(self):
        self.signal = 0

    def __enter__(self) -> "Interruption":
        self._before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        for number in self._before:
            signal.signal(number, self._note)
        return self

    def __exit__(self, *error) -> None:
        self._restore()

    def ends_evaluation(self) -> bool:
        """Whether to end an evaluation early.

        Several processes all complete it, so that none waits for another forever.
        """
        return self.signal != 0 and jax.process_count() == 1

    def _note(self, number: int, frame) -> None:
        self.signal = int(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
