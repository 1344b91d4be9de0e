"""A program that records a call until it is killed: `python -m tests.journal.endless FOLDER SESSION`.

It prints each frame that it hands over, with how many are durable by then.
"""

import sys
import time
from pathlib import Path

from server.journal import JournalWriter, exclusive, open_journal
from tests.journal.calls import session, tick


def main() -> None:
    folder, name = Path(sys.argv[1]), sys.argv[2]
    journal = open_journal(folder)
    with exclusive(journal.engine, folder):
        writer = JournalWriter(journal.engine, journal.keys, most_waiting=20_000)
        writer.start()
        writer.begin(session(name))
        print("recording", flush=True)
        for number in range(100_000):
            writer.frames(tick([name], number))
            print(number, writer.figures.durable_frames, flush=True)
            time.sleep(0.005)


if __name__ == "__main__":
    main()
