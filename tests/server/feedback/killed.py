"""Writers that are killed while they write: started by `test_faults.py` in a process of its own, which forks them.

Each child opens the store and files appeals, one after the other on two threads; the id of each goes into a pipe after
the store has acknowledged it. The parent kills it at a moment that nobody chose. At the end every id in the pipes has to
be in the store, with its answer and its text.
"""

import json
import os
import random
import signal
import sys
import threading
import time

from demur.server.feedback.store import Store
from tests.server.feedback.conftest import answer


def write(where: str, start: int, tell: int) -> None:
    """Files appeals until it is killed."""
    store = Store.open(where)

    def file(numbers: range) -> None:
        for number in numbers:
            store.keep(answer(number))
            filed = store.appeal("ann", f"chatcmpl-{number}", f"Argument {number}.")
            os.write(tell, f"{filed.id} {number}\n".encode())

    threads = [threading.Thread(target=file, args=(range(start + t, start + 100_000, 2),)) for t in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main(where: str, kills: int, seed: int) -> None:
    """Prints how many writers were killed, how many appeals were acknowledged, and those that are lost."""
    luck = random.Random(seed)
    Store.open(where).close()
    acknowledged: list[tuple[str, int]] = []
    while_writing = 0
    for kill in range(kills):
        read, tell = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            write(where, kill * 100_000, tell)
            os._exit(1)
        os.close(tell)
        # From the first acknowledgement on, so that it is killed while it writes and not while it starts.
        said = os.read(read, 65536)
        time.sleep(luck.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while more := os.read(read, 65536):
            said += more
        os.close(read)
        found = [line.split() for line in said.decode().splitlines() if line.endswith(tuple("0123456789"))]
        while_writing += bool(found)
        acknowledged += [(appeal, int(number)) for appeal, number in found]
    store = Store.open(where)
    lost = []
    for appeal, number in acknowledged:
        case = store.case(appeal)
        if case.appeal.argument != f"Argument {number}." or not case.answer.messages:
            lost.append(appeal)
    print(json.dumps({"killed": while_writing, "acknowledged": len(acknowledged), "lost": lost}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
