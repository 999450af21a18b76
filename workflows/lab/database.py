"""A PostgreSQL server in a directory of its own, and a client that writes and reads a row every 100 ms."""

import os
import pwd
import shutil
import subprocess
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Self

PERIOD, PATIENCE = 0.1, 60.0


def programs() -> Path | None:
    """The directory of the newest server's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parent.parent.name))
    return found[-1].parent if found else None


def installed() -> list[str]:
    """The packages that are missing."""
    return [] if programs() and shutil.which("psql") else ["postgresql"]


class Server:
    """A server that listens only at a socket in its own directory, apart from the machine's clusters."""

    port = 54329

    def __init__(self, directory: Path) -> None:
        self.directory, self.process = directory, None
        # PostgreSQL refuses to run as root.
        self.user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        self.sudo = (
            ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups"] if os.geteuid() == 0 else []
        )

    def __enter__(self) -> Self:
        data, run, bin_ = self.directory / "data", self.directory / "run", programs()
        run.mkdir(parents=True)
        data.mkdir()
        if self.sudo:
            for path in (self.directory, data, run):
                shutil.chown(path, self.user)
        with (self.directory.parent / "postgres.log").open("wb") as log:
            where = {"cwd": "/", "stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            initdb = [bin_ / "initdb", "-D", data, "-U", "forge", "--auth=trust", "--no-locale", "--encoding=UTF8"]
            subprocess.run([*self.sudo, *initdb], check=True, **where)
            words = ["-D", data, "-k", run, "-p", str(self.port), "-c", "listen_addresses="]
            self.process = subprocess.Popen([*self.sudo, bin_ / "postgres", *words], **where, start_new_session=True)
        ready = [bin_ / "pg_isready", "-q", "-h", run, "-p", str(self.port)]
        deadline = time.monotonic() + PATIENCE
        while subprocess.run(ready, check=False).returncode != 0:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"lab: PostgreSQL does not start: see {self.directory.parent / 'postgres.log'}")
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()  # a smart shutdown would wait for clients; the client has left
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def psql(self) -> list[str]:
        """The command of a client."""
        where = ["-h", str(self.directory / "run"), "-p", str(self.port), "-U", "forge", "-d", "postgres"]
        return ["psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", *where]


class Client:
    """A session that writes a row and reads it back, ten times a second, and notes how long that takes."""

    def __init__(self, server: Server) -> None:
        self.server, self.phase, self.ended = server, "alone", threading.Event()
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.failed: dict[str, list[str]] = defaultdict(list)
        self.thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Self:
        subprocess.run(
            [*self.server.psql(), "-c", "create table ticks (n int primary key, t timestamptz default now())"],
            check=True,
        )
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the session."""
        self.ended.set()
        self.thread.join()

    def count(self) -> int:
        """Count the rows."""
        done = subprocess.run(
            [*self.server.psql(), "-c", "select count(*) from ticks"], check=True, capture_output=True, text=True
        )
        return int(done.stdout)

    def _work(self) -> None:
        number, session = 0, None
        while not self.ended.is_set():
            session = session or subprocess.Popen(
                self.server.psql(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                bufsize=1,
            )
            number, phase, began = number + 1, self.phase, time.monotonic()
            try:
                print(
                    f"insert into ticks (n) values ({number}); select n from ticks where n = {number};",
                    file=session.stdin,
                )
                answer = session.stdout.readline().strip()
            except OSError as error:
                answer = str(error)
            taken = time.monotonic() - began
            if answer == str(number) and taken < PATIENCE:
                self.seconds[phase].append(taken)
            else:
                self.failed[phase].append(answer or "the server ended the session")
                session.kill()
                session = None
            self.ended.wait(max(0.0, PERIOD - taken))
        if session:
            session.communicate()
