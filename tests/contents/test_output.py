"""What a program writes to stdout and stderr is recorded, and its terminal, its pipes and its end stay as they were."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import resource
import signal
import struct
import subprocess
import sys
import termios
import textwrap
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from processes import run_script, script, wait_for
from tracking_callbacks import ConfigError, Delivery, MLflowTracker, Recording
from tracking_callbacks._contents import output_text
from tracking_callbacks._contents.output_text import Cursor, Page

OFFLINE = """
    import ctypes, os, signal, subprocess, sys, threading, time
    from tracking_callbacks import Delivery, MLflowTracker, Recording
    libc = ctypes.CDLL(None)
    def tracker(**record):
        return MLflowTracker("http://127.0.0.1:9", record=Recording.only(**record), delivery=Delivery(offline=True))
    def readers():
        import psutil
        return [one for one in psutil.Process().children() if "output_reader" in " ".join(one.cmdline())]
"""


def program(code: str) -> str:
    return textwrap.dedent(OFFLINE) + textwrap.dedent(code)


def logs(folder: Path) -> list[str]:
    """Return the logs of all runs that `folder` keeps, oldest first."""
    found = folder.glob(".tracking_callbacks/*/live/*/logs/output.log")
    return [path.read_text() for path in sorted(found, key=lambda path: path.parts[-3])]


def reading_processes() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any("output_reader" in part for part in process.info["cmdline"] or ()):
            found.append(process)
    return found


@pytest.fixture(autouse=True)
def no_reader_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # a print is one write
    before = {process.pid for process in reading_processes()}
    yield
    wait_for(lambda: {process.pid for process in reading_processes()} <= before, "the reading processes end")


class Terminal:
    """A terminal that a program runs in, as the leader of its session."""

    def __init__(self, code: str, cwd: Path) -> None:
        self.shown = b""
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.chdir(cwd)
            os.execv(sys.executable, [sys.executable, "-c", code])
        self.resize(40, 100)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while content := os.read(self._fd, 65536):
                self.shown += content

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def shows(self, text: str) -> None:
        with contextlib.suppress(AssertionError):
            wait_for(lambda: text.encode() in self.shown, f"the terminal shows {text!r}")
        assert text.encode() in self.shown, self.shown[-2000:]

    def type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def wait(self) -> int:
        status = wait_for(lambda: os.waitpid(self.pid, os.WNOHANG)[0] and 1, "the program ends") and 0
        self._thread.join(30)
        return status

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self._thread.join(30)
        os.close(self._fd)


EVERYTHING = """
    from tqdm import tqdm
    before = [os.fstat(fd)[:3] for fd in (1, 2)]
    assert not SPLIT or not sys.stdout.isatty()
    print("before", flush=True)
    run = tracker(output=OUTPUT).start_run()
    columns = os.get_terminal_size(2).columns if TTY else ""
    print("stdout", sys.stdout.isatty(), sys.stderr.isatty(), columns, flush=True)
    print("\\x1b[31mred\\x1b[0m on stderr", file=sys.stderr, flush=True)
    libc.printf(b"native %d\\n", 7)
    libc.fflush(None)
    libc.write(2, b"raw\\n", 4)
    subprocess.run(["sh", "-c", "echo child; echo of sh >&2"])
    for _ in tqdm(range(300), bar_format="{l_bar}{n}", mininterval=0, desc="bar"):
        pass
    print("token=hf_" + "a" * 10, end="", flush=True)
    print("a" * 20)
    sys.stdout.flush()
    run.end()
    assert [os.fstat(fd)[:3] for fd in (1, 2)] == before
    print("after")
"""


@pytest.mark.parametrize("where", ["terminal", "pipe", "two pipes"])
def test_the_run_has_what_the_terminal_shows_and_the_terminal_is_unchanged(where, tmp_path) -> None:
    shown = []
    for output in (False, True):
        code = f"OUTPUT, TTY, SPLIT = {output}, {where == 'terminal'}, {where == 'two pipes'}\n" + program(EVERYTHING)
        if where == "terminal":
            with Terminal(code, tmp_path) as terminal:
                terminal.wait()
            shown.append([terminal.shown])
        else:
            to = subprocess.PIPE if where == "two pipes" else subprocess.STDOUT
            done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, stderr=to)
            assert done.returncode == 0, done
            shown.append([done.stdout, done.stderr])

    assert shown[0] == shown[1]
    assert shown[1][0].count(b"after") == 1
    (log,) = logs(tmp_path)
    first = f"stdout {where == 'terminal'} {where == 'terminal'} {100 if where == 'terminal' else ''}".strip()
    expected = [first, "red on stderr", "native 7", "raw", "child", "of sh", "bar: 100%|300", "token=***"]
    if where == "two pipes":
        assert sorted(log.splitlines()) == sorted(expected)
    else:
        assert log.splitlines() == expected


def test_the_size_the_prompt_and_job_control_of_a_terminal_go_on_working(tmp_path) -> None:
    code = program("""
        def resized(*_):  # it may come within a print, which is not reentrant
            os.write(2, b"size %d\\n" % os.get_terminal_size(1).columns)
        signal.signal(signal.SIGWINCH, resized)
        with tracker(output=True).start_run():
            name = input("name? ")
            print("hello", name)
            try:
                print("waits", flush=True)
                while True: time.sleep(0.01)
            except KeyboardInterrupt:
                print("interrupted")
            print("last line")
    """)
    with Terminal(code, tmp_path) as terminal:
        terminal.shows("name? ")
        terminal.type("Ada\n")
        terminal.shows("hello Ada")
        terminal.shows("waits")
        terminal.resize(50, 133)
        terminal.shows("size 133")
        os.kill(terminal.pid, signal.SIGSTOP)
        os.kill(terminal.pid, signal.SIGCONT)
        terminal.type("\x03")
        terminal.shows("interrupted")
        terminal.wait()

    shown, _, after = terminal.shown.partition(b"tracking_callbacks: ")
    assert shown.endswith(b"interrupted\r\nlast line\r\n")
    assert after.startswith(b"what was logged offline")
    assert "hello Ada\nwaits\n" in logs(tmp_path)[0]


ENDS = {
    "raises": "raise ValueError('the end token=hf_' + 'b' * 30)",
    "aborts": "import faulthandler; faulthandler.enable(); libc.puts(b'last words'); libc.fflush(None); os.abort()",
    "is killed": "os.kill(os.getpid(), signal.SIGKILL)",
}
LAST = {"raises": "ValueError: the end token=***", "aborts": "Fatal Python error: Aborted", "is killed": "line 4999"}


@pytest.mark.parametrize("end", ENDS)
def test_a_crash_loses_nothing_of_what_was_written(end, server, client, tmp_path) -> None:
    name = f"output-{uuid.uuid4().hex[:8]}"
    code = f"""
        run = MLflowTracker({server.uri!r}, {name!r}, record=Recording.only(output=True)).start_run()
        for number in range(5000):
            print("line", number)
        sys.stdout.flush()
        print("half a line", end="", file=sys.stderr)
        sys.stderr.flush()
        with run:
            {ENDS[end]}
    """
    done = run_script(program(code), cwd=tmp_path)
    assert done.stdout.splitlines()[:5000] == [f"line {number}" for number in range(5000)]
    assert LAST[end].replace("***", "hf_" + "b" * 30) in done.stdout + done.stderr
    experiment = wait_for(lambda: client.get_experiment_by_name(name), "the experiment exists")

    def ended():
        found = client.search_runs([experiment.experiment_id])
        return found and found[0].info.status != "RUNNING" and found[0]

    run = wait_for(ended, "the run ends")
    wait_for(lambda: not list(tmp_path.glob(".tracking_callbacks/*/live")), "the run is delivered")
    log = Path(client.download_artifacts(run.info.run_id, "logs/output.log", str(tmp_path))).read_text().splitlines()
    assert [line for line in log if line.startswith("line")] == [f"line {number}" for number in range(5000)]
    assert any(line.startswith("half a line") for line in log)
    assert any(LAST[end] in line for line in log)
    assert "Traceback" in " ".join(log) or end != "raises"


@pytest.mark.parametrize("under", ["terminal", "pipe"])
def test_a_reader_that_is_killed_takes_nothing_from_the_terminal(under, tmp_path) -> None:
    code = program("""
        import logging
        logging.basicConfig(filename="warning", format="%(message)s")
        run = tracker(output=True).start_run()
        inner = os.fstat(1)[:3]
        (reader,) = readers()
        loop = "read go; i=0; while [ $i -lt 300 ]; do echo child $i; i=$((i+1)); done"
        child = subprocess.Popen(["sh", "-c", loop], stdin=subprocess.PIPE)
        for number in range(20_000):
            print("line", number)
            if number == 5_000:
                reader.kill()
                reader.wait()
        sys.stdout.flush()
        child.communicate(b"go")
        deadline = time.monotonic() + 10
        while os.fstat(1)[:3] == inner and time.monotonic() < deadline:
            time.sleep(0.01)
        assert os.fstat(1)[:3] != inner
        run.end()
        print("ended", run.ended)
    """)
    if under == "terminal":
        with Terminal(code, tmp_path) as terminal:
            terminal.wait()
        shown = terminal.shown.decode().replace("\r\n", "\n")
    else:
        shown = run_script(code, cwd=tmp_path).stdout

    lines = [line for line in shown.splitlines() if not line.startswith("tracking_callbacks: what was logged offline")]
    assert "ended True" in lines
    # What is written while the descriptors change may arrive later than what follows it, and in a pipe twice.
    torn = [line for line in lines if not re.fullmatch(r"line \d+|child \d+|ended True", line)]
    assert not torn
    numbers = sorted(map(int, re.findall(r"line (\d+)\n", shown)))
    assert (numbers if under == "terminal" else sorted(set(numbers))) == list(range(20_000))
    assert (tmp_path / "warning").read_text().startswith("the process that records the output has ended")
    assert re.findall(r"child (\d+)\n", shown) == [str(number) for number in range(300)]


def test_an_output_that_nothing_reads_any_more_neither_raises_nor_blocks(tmp_path) -> None:
    code = program("""
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        with tracker(output=True).start_run():
            print("x" * 3_000_000)
            for number in range(3000):
                print("line", number)
            open("trained", "w").close()
    """)
    with script(code, cwd=tmp_path) as process:
        process.stdout.close()
        process.stdout = None
        wait_for((tmp_path / "trained").exists, "the training ends")
        process.wait(30)

    assert "line 2999" in logs(tmp_path)[0]


def test_a_pipe_that_is_read_late_gets_everything(tmp_path) -> None:
    code = program("""
        with tracker(output=True).start_run():
            for number in range(100_000):
                print("line", number)
    """)
    with script(code, cwd=tmp_path) as process:
        wait_for(lambda: logs(tmp_path), "the run begins")
        lines = [process.stdout.readline() for _ in range(100_000)]
        rest = process.stdout.read()

    assert lines == [f"line {number}\n" for number in range(100_000)]
    assert rest == ""
    assert logs(tmp_path)[0].splitlines() == [line.strip() for line in lines]


def test_runs_at_once_children_and_closed_descriptors(tmp_path) -> None:
    code = program("""
        import multiprocessing
        outer = tracker(output=True).start_run("outer")
        print("one", flush=True)
        inner = tracker(output=True).start_run("inner")
        print("two", flush=True)
        forked = multiprocessing.get_context("fork").Process(target=print, args=("forked",), kwargs={"flush": True})
        forked.start()
        forked.join()
        assert forked.exitcode == 0
        inner.end()
        late = subprocess.Popen(["sh", "-c", "read go; echo late; echo later >&2"], stdin=subprocess.PIPE)
        print("three", flush=True)
        assert len(readers()) == 1
        outer.end()
        late.communicate(b"go")
        assert late.returncode == 0
        run = tracker(output=True).start_run("again")
        kept = os.dup(1)
        os.dup2(os.open("elsewhere", os.O_WRONLY | os.O_CREAT), 1)
        print("not ours", flush=True)
        os.dup2(kept, 1)
        print("ours", flush=True)
        run.end()
        os.close(1)
        run = tracker(output=True).start_run("without stdout")
        run.log_metrics({"loss": 1.0})
        print("on stderr", file=sys.stderr)
        run.end()
        assert run.report().dropped == 0 and not os.path.exists("/proc/self/fd/1") or not os.get_inheritable(1)
        os._exit(0)
    """)
    done = run_script(code, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert done.stdout == "one\ntwo\nforked\nthree\nlate\nours\n"
    assert done.stderr == "later\non stderr\n"
    assert logs(tmp_path) == ["one\ntwo\nforked\nthree\n", "two\nforked\n", "ours\n", "on stderr\n"]


def test_text_that_goes_around_the_descriptors_is_recorded(tracker, tmp_path, capsys) -> None:
    run = MLflowTracker(
        "http://127.0.0.1:9",
        record=Recording.only(output=True),
        delivery=Delivery(offline=True, journal_root=tmp_path / ".tracking_callbacks"),
    ).start_run()
    sys.stdout.write("to pytest\n")
    os.write(2, b"to the descriptor\n")
    run.end()
    sys.stdout.write("after\n")

    assert sorted(logs(tmp_path)[0].splitlines()) == ["to pytest", "to the descriptor"]
    assert capsys.readouterr().out == "to pytest\nafter\n"


def test_a_notebook_records_what_its_cells_print(tmp_path) -> None:
    pytest.importorskip("jupyter_client")
    cells = [
        program("run = tracker(output=True).start_run(); print('first')"),
        *("print('cell')", "libc.puts(b'native'); _ = libc.fflush(None)", "run.end()", "print('after')"),
    ]
    # In another process, because it imports ipykernel, and this one would look like a notebook from then on.
    driver = f"""
        from jupyter_client.manager import start_new_kernel
        manager, client = start_new_kernel(kernel_name="python3")
        try:
            for cell in {cells!r}:
                assert client.execute_interactive(cell, timeout=60)["content"]["status"] == "ok"
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)
    """
    done = run_script(driver, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert sorted(logs(tmp_path)[0].splitlines()) == ["cell", "first", "native"]
    assert sorted(done.stdout.splitlines()) == ["after", "cell", "first", "native"]


# -- the text --------------------------------------------------------------------------------------------------------


def folded(folder: Path, *pieces: str) -> str:
    page, cursor = Page(), Cursor()
    page.open(folder / "output.log")
    for piece in pieces:
        page.write(cursor, piece)
        page.save(present=True)
    page.close(folder / "output.log")
    return (folder / "output.log").read_text()


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["a\n", "b"], "a\nb\n"),
        (["\r 10%", "\r 20%", "\r100%\n", "next\n"], "100%\nnext\n"),
        (["long bar\rbar     \n"], "bar\n"),
        (["windows\r\nends\r\n"], "windows\nends\n"),
        (["\x1b[1;31mred\x1b", "[0m \x1b]8;;http://x\x1b\\link\x1b]8;;\x07\n"], "red link\n"),
        (["outer 0\ninner 0\x1b[A", "\router 1\n\rinner 9\x1b[A", "\n\ndone\n"], "outer 1\ninner 9\ndone\n"),
        (["one\ntwo\n\x1b[2A\x1b[0J", "new\n"], "new\n"),
        (["abc\b\bx\n", "\x1b[2K\rgone\x1b[2K\rhere\n"], "axc\nhere\n"),
        (["50%|##", "\r      \r"], ""),
        (["a\n\n\nb\n"], "a\n\n\nb\n"),
        (["\x1b[999999999999A\x1b[5Gx\n"], "    x\n"),
        (["key: hf_" + "a" * 10, "a" * 20 + "\n"], "key: ***\n"),
        (["-----BEGIN RSA PRIVATE KEY-----\nMII\n", "abc=\n-----END RSA PRIVATE KEY-----\nok\n"], None),
    ],
)
def test_what_is_overwritten_is_left_out_and_secrets_are_masked(pieces, expected, tmp_path) -> None:
    text = folded(tmp_path, *pieces)

    if expected is None:
        assert "MII" not in text
        assert "abc" not in text
        assert text.endswith("ok\n")
    else:
        assert text == expected


def test_two_streams_keep_their_own_lines_and_a_later_file_what_came_later(tmp_path) -> None:
    page, out, err = Page(), Cursor(), Cursor()
    page.open(tmp_path / "output.log")
    page.write(out, "early\nhalf ")
    page.open(tmp_path / "later" / "output.log")
    page.write(err, "\rbar 1")
    page.write(err, "\rbar 2")
    page.write(out, "a line\n")
    page.save(present=True)
    assert (tmp_path / "output.log").read_text() == "early\nhalf a line\nbar 2"
    for number in range(500):
        page.write(out, f"{number}\n")
    page.write(err, "\rbar 3\n")
    for path in (tmp_path / "output.log", tmp_path / "later" / "output.log"):
        page.close(path)

    numbers = "".join(f"{number}\n" for number in range(500))
    assert (tmp_path / "output.log").read_text() == f"early\nhalf a line\nbar 3\n{numbers}"
    assert (tmp_path / "later" / "output.log").read_text() == f"half a line\nbar 3\n{numbers}"


def test_the_end_of_a_long_output_is_kept_and_a_full_disk_is_survived(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(output_text, "MAX_OUTPUT_BYTES", 2000)
    folded(tmp_path, *(f"line {number:03d}\n" for number in range(1000)))
    files = [tmp_path / "output.1.log", tmp_path / "output.log"]

    assert sorted(tmp_path.glob("output*")) == files
    assert all(path.stat().st_size <= 2000 for path in files)
    kept = "".join(path.read_text() for path in files)
    assert kept == "".join(f"line {number:03d}\n" for number in range(1000))[-len(kept) :]
    page, cursor = Page(), Cursor()
    page.open(tmp_path / "full" / "output.log")
    page.write(cursor, "before\n")
    page.save()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (7, limits[1]))
    page.write(cursor, "lost\n")
    page.save()
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    page.write(cursor, "after\n")
    page.close(tmp_path / "full" / "output.log")

    assert (tmp_path / "full" / "output.log").read_text() == "before\nafter\n"


def test_it_is_off_unless_it_is_asked_for(tmp_path) -> None:
    (tmp_path / "config.yaml").write_text("record: {output: true}\n")
    (tmp_path / "wrong.yaml").write_text("record: {output: 'yes'}\n")

    assert MLflowTracker(config="config.yaml").settings.record.output is True
    assert not any(MLflowTracker(record=record).settings.record.output for record in (None, True, False))
    assert Recording.only(output=True).python_logging is False
    with pytest.raises(ConfigError, match=r"wrong\.yaml.*output: expected true or false"):
        MLflowTracker(config="wrong.yaml")
    with pytest.raises(ConfigError, match="output"):
        MLflowTracker(record=Recording(output=1))
