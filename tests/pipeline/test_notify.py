"""Telling how a run ended, to a real server on the loopback and to real programs."""

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml

from pipeline.config import StrictModel, load_config
from pipeline.errors import ConfigError, DataError, Interrupted
from pipeline.telling import notify as notifying
from pipeline.telling.ending import Told
from pipeline.telling.notify import NotifyConfig, notify, telling

TOLD = Told(run="emoji", workdir="/runs", status="finished", exit_code=0, seconds=12.5, resume="python run_pipeline.py")


@dataclass
class Server:
    """Answers with these codes, the last one for ever; 0 hangs until the test ends."""

    answers: list[int]
    url: str = ""
    bodies: list[dict] = field(default_factory=list)
    headers: list[dict] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)


@contextmanager
def answering(*codes: int) -> Iterator[Server]:
    server = Server(list(codes))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            server.headers.append(dict(self.headers))
            code = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
            if code == 0:
                server.released.wait(20)
                return
            self.send_response(code)
            if 300 <= code < 400:
                self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, args=(0.02,))
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_port}/services/T0/s3cr3tpath"
    try:
        yield server
    finally:
        server.released.set()
        http.shutdown()
        thread.join()
        http.server_close()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(notifying, "FIRST_PAUSE", 0.01)


def config(**keys):
    return NotifyConfig.model_validate({"when": "always", **keys})


def test_a_webhook_that_fails_twice_is_told_at_the_third_attempt(monkeypatch):
    said = []
    monkeypatch.setenv("SERVICE_PASSWORD", "hunter2hunter2")
    told = Told(
        run="emoji",
        workdir="/runs",
        status="failed",
        exit_code=3,
        error="cannot log in with hunter2hunter2",
        seconds=1.0,
        figures={"kid_samples": 0.25, "is": float("inf")},
        resume="python run_pipeline.py tracking.uri=https://me:pw@host",
    )
    with answering(500, 429, 204) as server:
        assert notify(config(webhook=server.url), told, said.append)
    assert said == []
    assert len(server.bodies) == 3
    assert server.bodies[0] == server.bodies[2]
    body = server.bodies[2]
    assert {header["Idempotency-Key"] for header in server.headers} == {body["id"]}
    assert server.headers[2]["Content-Type"] == "application/json"
    assert (body["format"], body["status"], body["exit_code"]) == (1, "failed", 3)
    assert body["error"] == "cannot log in with ***"
    assert body["resume"] == "python run_pipeline.py tracking.uri=https://***@host"
    assert body["figures"] == {"kid_samples": 0.25, "is": None}
    assert {"host", "time", "stages", "champion", "reasons", "report", "verdict", "workdir"} <= set(body)


@pytest.mark.parametrize(
    ("codes", "attempts", "reason"),
    [((404,), 1, "it answered 404"), ((302, 200), 1, "it answered 302"), ((503,), 3, "it answered 503")],
)
def test_what_is_hopeless_is_not_tried_again(codes, attempts, reason):
    said = []
    with answering(*codes) as server:
        assert not notify(config(webhook=server.url, attempts=3), TOLD, said.append)
    assert len(server.bodies) == attempts
    (line,) = said
    assert line.startswith("webhook http://127.0.0.1/*** was not told how the run ended, ")
    assert line.endswith(reason)
    assert "s3cr3tpath" not in line


def test_a_server_that_hangs_is_given_up_and_tried_again_within_the_limit():
    said, started = [], time.monotonic()
    with answering(0, 200) as server:
        assert notify(config(webhook=server.url, timeout=0.3, limit=10), TOLD, said.append)
    assert len(server.bodies) == 2
    with answering(0) as server:
        started = time.monotonic()
        assert not notify(config(webhook=server.url, timeout=60, limit=0.5), TOLD, said.append)
        assert time.monotonic() - started < 0.5 + notifying.GRACE + 1
    assert said[0].endswith("no answer in 0.5 s")


def test_a_refused_connection_is_announced_without_the_urls_path():
    with answering(200) as server:
        url = server.url
    said = []  # nobody listens there any more
    assert not notify(config(webhook=url, attempts=2), TOLD, said.append)
    assert said == ["webhook http://127.0.0.1/*** was not told how the run ended, 2 attempts: Connection refused"]


def test_a_command_reads_the_json_from_its_standard_input(tmp_path):
    program = f"import pathlib, sys; pathlib.Path({str(tmp_path / 'got.json')!r}).write_bytes(sys.stdin.buffer.read())"
    said = []
    assert notify(config(command=[sys.executable, "-c", program]), TOLD, said.append)
    got = json.loads((tmp_path / "got.json").read_text())
    assert (got["run"], got["status"], got["seconds"], said) == ("emoji", "finished", 12.5, [])


def test_a_command_that_fails_first_is_started_again(tmp_path):
    program = """
import pathlib, sys
tries = pathlib.Path(sys.argv[1])
tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
sys.exit("too early" if len(tries.read_text()) < 3 else 0)
"""
    command, said = [sys.executable, "-c", program, str(tmp_path / "tries")], []
    assert notify(config(command=command), TOLD, said.append)
    assert (tmp_path / "tries").read_text() == "xxx"
    (tmp_path / "tries").unlink()
    assert not notify(config(command=command, attempts=2), TOLD, said.append)
    assert said == [f"command {sys.executable} was not told how the run ended, 2 attempts: exit code 1: too early"]


def test_a_command_that_hangs_is_killed_with_what_it_started(tmp_path):
    program = """
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
pathlib.Path(sys.argv[1]).write_text(str(child.pid))
time.sleep(60)
"""
    said, started = [], time.monotonic()
    command = [sys.executable, "-c", program, str(tmp_path / "pid")]
    assert not notify(config(command=command, timeout=3, limit=4, attempts=1), TOLD, said.append)
    assert time.monotonic() - started < 8
    assert said[0].endswith("1 attempt: it took longer than 3.0 s")
    stat = f"/proc/{(tmp_path / 'pid').read_text()}/stat"
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _alive(stat):
        time.sleep(0.05)
    assert not _alive(stat)


def _alive(stat: str) -> bool:
    try:
        with open(stat) as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_one_that_cannot_be_reached_does_not_keep_the_other_from_being_told():
    said = []
    with answering(200) as server:
        assert not notify(config(command=["/absent/program"], webhook=server.url), TOLD, said.append)
    assert len(server.bodies) == 1
    assert said == [
        "command /absent/program was not told how the run ended, 1 attempt: it cannot be started: "
        "No such file or directory"
    ]


@pytest.mark.parametrize(
    ("when", "told"),
    [
        ("always", {"finished", "failed", "interrupted", "nothing_new", "judged"}),
        ("changed", {"finished", "failed", "interrupted", "judged"}),
        ("published", {"failed", "interrupted", "judged"}),
        ("failed", {"failed", "interrupted"}),
    ],
)
def test_only_those_ends_are_told_that_were_asked_for(when, told):
    ends = {
        "finished": {"status": "finished"},
        "failed": {"status": "failed"},
        "interrupted": {"status": "interrupted"},
        "nothing_new": {"status": "nothing_new", "verdict": "champion"},
        "judged": {"status": "finished", "verdict": "challenger"},
    }
    reached = set()
    for name, end in ends.items():
        with answering(200) as server:
            full = {"run": "r", "workdir": "w", "exit_code": 0, "seconds": 1.0, "resume": ""} | end
            assert notify(config(webhook=server.url, when=when), Told(**full), print)
        reached |= {name} if server.bodies else set()
    assert reached == told


def test_the_url_may_come_from_the_environment(monkeypatch):
    said = []
    with answering(200) as server:
        monkeypatch.setenv("SMALTI_HOOK", server.url)
        assert notify(config(webhook_env="SMALTI_HOOK"), TOLD, said.append)
    assert len(server.bodies) == 1
    monkeypatch.setenv("SMALTI_HOOK", "s3cr3t")
    assert not notify(config(webhook_env="SMALTI_HOOK"), TOLD, said.append)
    assert said == [
        "notify: nobody was told, SMALTI_HOOK of the environment is not usable: it holds no URL of the form "
        "https://host/path"
    ]


def test_a_webhook_is_never_shown(tmp_path):
    class Root(StrictModel):
        notify: NotifyConfig = NotifyConfig()

    file = tmp_path / "config.yaml"
    file.write_text("notify: {webhook: https://hooks.example.com/T0/s3cr3t}\n")
    root = load_config(Root, file)
    assert root.notify.webhook is not None
    assert root.notify.webhook.get_secret_value() == "https://hooks.example.com/T0/s3cr3t"
    shown = [yaml.safe_dump(root.model_dump(mode="json")), repr(root), root.model_dump_json()]
    assert not any("s3cr3t" in text for text in shown)
    file.write_text("notify: {webhook: 's3cr3t', limit: -1}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(Root, file)
    assert "notify.webhook: it holds no URL of the form https://host/path\n" in f"{caught.value}\n"
    assert "(got -1)" in str(caught.value)
    assert "s3cr3t" not in str(caught.value)
    file.write_text("notify: {webhook: https://host/s3cr3t, webhook_env: HOOK}\n")
    with pytest.raises(ConfigError, match=r"webhook names a URL already: keep one of the two \(got 'HOOK'\)"):
        load_config(Root, file)


@pytest.mark.parametrize(
    ("error", "status", "exit_code"),
    [
        (None, "nothing_new", 0),
        (DataError("no pictures in /data"), "failed", 3),
        (RuntimeError("a bug"), "failed", 1),
        (Interrupted(15), "interrupted", 143),
        (KeyboardInterrupt(), "interrupted", 130),
    ],
)
def test_however_a_run_ends_it_is_told_and_the_error_goes_on(error, status, exit_code):
    with answering(200) as server:
        ways = {"run": "emoji", "workdir": "/runs", "resume": "again", "warn": print}
        try:
            with telling(config(webhook=server.url), **ways) as ending:
                ending.verdict, ending.champion = "challenger", 4
                if error:
                    raise error
        except BaseException as caught:
            assert caught is error
    (body,) = server.bodies
    assert (body["status"], body["exit_code"], body["champion"]) == (status, exit_code, 4)
    assert body["error"] == (None if error is None else str(error) or "KeyboardInterrupt")
