# SPDX-License-Identifier: GPL-2.0
"""Workloads that are programs nobody here wrote: SQLite and LMDB."""

import os
import random
import sqlite3

import lmdb

SOME = 40


def _value(seed, number, key):
    dice = random.Random(f"{seed} {number} {key}")
    return dice.randbytes(dice.choice((20, 200, 3000))).hex()


class _Store:
    """A number of transactions, each of which changes some keys; after n of them the contents are known."""

    def __init__(self, tell):
        self.tell = tell
        self.states = [{}]

    def _transactions(self, seed, most):
        """(number, changes) of each, which is in `states` before it begins."""
        dice = random.Random(seed)
        self.states = [{}]
        for number in range(1, most + 1):
            state = dict(self.states[-1])
            changes = {}
            for _ in range(dice.randint(1, 4)):
                key = dice.randrange(SOME)
                changes[key] = None if dice.random() < 0.2 else _value(seed, number, key)
            state.update(changes)
            self.states.append({key: value for key, value in state.items() if value})
            yield number, changes

    def recall(self, seed, most):
        """Know again what the first transactions were."""
        for _ in self._transactions(seed, most):
            pass

    def run(self, path, seed, wanted, most):
        """Commit until there are so many cuts; how many there are."""
        cuts = 0
        with self.open(path) as store:
            for number, changes in self._transactions(seed, most):
                self.tell(2 * number - 1)
                store.change(number, changes)
                cuts = self.tell(2 * number)
                if cuts >= wanted:
                    break
        return cuts

    def check(self, path, what, _by_read):
        """(what is wrong, promises) after a cut, which followed so many events."""
        events = what["events"]
        done, begun = events[0] // 2, (events[0] + 1) // 2
        try:
            with self.open(path) as store:
                number, found = store.contents()
        except Exception as error:  # pylint: disable=broad-exception-caught
            return [f"cannot be read: {error!r}"], done
        if not done <= number <= begun:
            return [f"has {number} transactions; {done} were confirmed, {begun} begun"], done
        if found != self.states[number]:
            keys = [key for key in range(SOME)
                    if found.get(key) != self.states[number].get(key)]
            return [f"after {number} transactions {keys} are not what they were"], done
        return [], done


class _SqliteFile:
    def __init__(self, path):
        self.connection = sqlite3.connect(os.path.join(path, "sqlite"), isolation_level=None)
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "mmap_size=8388608",
                       "wal_autocheckpoint=20"):
            self.connection.execute(f"PRAGMA {pragma}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.connection.close()

    def make(self):
        self.connection.execute("CREATE TABLE t (key INTEGER PRIMARY KEY, value TEXT)")
        self.connection.execute("CREATE TABLE n (number INTEGER)")
        self.connection.execute("INSERT INTO n VALUES (0)")

    def change(self, number, changes):
        run = self.connection.execute
        run("BEGIN IMMEDIATE")
        for key, value in changes.items():
            if value:
                run("INSERT OR REPLACE INTO t VALUES (?, ?)", (key, value))
            else:
                run("DELETE FROM t WHERE key = ?", (key,))
        run("UPDATE n SET number = ?", (number,))
        run("COMMIT")

    def contents(self):
        verdict = self.connection.execute("PRAGMA integrity_check").fetchall()
        if verdict != [("ok",)]:
            raise ValueError(f"integrity_check: {verdict}")
        number = self.connection.execute("SELECT number FROM n").fetchone()[0]
        return number, dict(self.connection.execute("SELECT key, value FROM t"))


class Sqlite(_Store):
    """SQLite with a write-ahead log and a mapping, which syncs on every commit."""

    open = staticmethod(_SqliteFile)

    def prepare(self, path):
        with self.open(path) as store:
            store.make()


class _LmdbFile:
    def __init__(self, path):
        self.environment = lmdb.open(os.path.join(path, "lmdb"), map_size=8 << 20, subdir=False,
                                     writemap=True, max_readers=4)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.environment.close()

    def change(self, number, changes):
        with self.environment.begin(write=True) as transaction:
            for key, value in changes.items():
                if value:
                    transaction.put(b"%d" % key, value.encode())
                else:
                    transaction.delete(b"%d" % key)
            transaction.put(b"n", b"%d" % number)

    def contents(self):
        with self.environment.begin() as transaction:
            found = {bytes(key): bytes(value) for key, value in transaction.cursor()}
        number = int(found.pop(b"n"))
        return number, {int(key): value.decode() for key, value in found.items()}


class Lmdb(_Store):
    """LMDB, whose pages are a mapping that it stores to and syncs with msync."""

    open = staticmethod(_LmdbFile)

    def prepare(self, path):
        with self.open(path) as store:
            store.change(0, {})
