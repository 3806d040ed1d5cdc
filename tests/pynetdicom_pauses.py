"""pynetdicom as a client that loses no answers on a busy machine.

Before it sends and awaits an answer, it asks its own reactor thread to pause, and takes ``_is_paused`` for the word
that it does. But that is set before the thread waits at the checkpoint: one that is let through and put to sleep right
behind it counts as paused, wakes up while the answer comes, and takes it away from who awaits it.
"""

import threading

from pynetdicom.association import Association


def _is_paused(association: Association) -> bool:
    if association._kill or not association.is_alive() or threading.current_thread() is association:
        return True
    return bool(association.__dict__["_is_paused"] and association._reactor_checkpoint._cond._waiters)


def _set_paused(association: Association, value: bool) -> None:
    association.__dict__["_is_paused"] = value


Association._is_paused = property(_is_paused, _set_paused)
