import errno
import logging
import socket

import pytest

from pipeline.errors import ConfigError, StorageError
from pipeline.storage import Folder, remote, retries
from tests.faulty_store import ServerAnswer

REFUSED = ConnectionRefusedError(errno.ECONNREFUSED, "refused")


def named(name: str, *bases: type[BaseException]) -> type[BaseException]:
    return type(name, bases or (Exception,), {})


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (REFUSED, True),
        (ConnectionResetError(errno.ECONNRESET, "reset"), True),
        (TimeoutError("slow"), True),
        (OSError(errno.EHOSTUNREACH, "unreachable"), True),
        (ServerAnswer(503, "SlowDown"), True),
        (ServerAnswer(500, "InternalError"), True),
        (ServerAnswer(429, "TooManyRequests"), True),
        (ServerAnswer(400, "RequestTimeout"), True),
        (caused(OSError(errno.EBUSY, "Slow down"), ServerAnswer(503, "SlowDown")), True),
        (named("EndpointConnectionError", named("ConnectionError"))("could not connect"), True),
        (named("ServerDisconnectedError", named("ClientConnectionError"))("gone"), True),
        (socket.gaierror(socket.EAI_AGAIN, "try again"), True),
        (caused(named("ConnectionError")("x"), socket.gaierror(socket.EAI_NONAME, "no such name")), False),
        (ServerAnswer(403, "AccessDenied"), False),
        (ServerAnswer(404, "NoSuchKey"), False),
        (ServerAnswer(412, "PreconditionFailed"), False),
        (ServerAnswer(501, "NotImplemented"), False),
        (caused(OSError(errno.EBUSY, "conflict"), ServerAnswer(409, "BucketNotEmpty")), False),
        (caused(named("ConnectionError")("x"), named("ClientSSLError")("certificate")), False),
        (ValueError("Invalid endpoint: garbage"), False),
        (PermissionError("denied"), False),
        (OSError(errno.ENOSPC, "full"), False),
    ],
)
def test_what_passes_is_told_from_what_does_not(error, passing):
    assert retries.is_passing(error) is passing


def test_what_passes_is_tried_again_and_each_failure_logged_once(faulty, caplog, monkeypatch):
    said = []
    monkeypatch.setattr(retries, "announce", said.append)
    folder = Folder.at("faulty://bucket/runs")
    folder.write("a.txt", b"1")
    faulty.faults += [("cat", REFUSED), ("cat", ServerAnswer(503, "SlowDown"))]
    with caplog.at_level(logging.WARNING):
        assert folder.read("a.txt") == b"1"
    told = [record.message for record in caplog.records]
    assert len(told) == 3
    assert "cannot read faulty://bucket/runs/a.txt yet (ConnectionRefusedError" in told[0]
    assert "SlowDown" in told[1]
    assert "could read faulty://bucket/runs/a.txt after" in told[2]
    assert len(said) == 1, "the person hears of it once, not at every try"


def test_patience_ends_and_says_after_how_long(faulty, monkeypatch):
    monkeypatch.setenv(retries.PATIENCE, "0.05")
    faulty.faults += [("put", REFUSED)] * 1000
    with pytest.raises(
        StorageError, match=r"cannot write faulty://bucket/a: no good answer for 0 s \(\d+ tries, at last: Connection"
    ):
        Folder.at("faulty://bucket").write("a", b"1")
    assert 2 <= faulty.count("put") < 1000
    monkeypatch.setenv(retries.PATIENCE, "soon")
    with pytest.raises(ConfigError, match="SMALTI_STORAGE_PATIENCE=soon: must be a number of seconds"):
        Folder.at("faulty://bucket").read("a")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError("Access Denied."), "permission was denied: see to the credentials"),
        (ServerAnswer(403, "InvalidAccessKeyId"), "permission was denied: see to the credentials"),
        (named("NoCredentialsError")("Unable to locate credentials"), "there are no credentials"),
        (ValueError("Invalid endpoint: garbage"), "there is no such server .*: correct the endpoint"),
        (
            caused(named("ConnectionError")("x"), socket.gaierror(socket.EAI_NONAME, "unknown")),
            "there is no such server",
        ),
        (ServerAnswer(501, "NotImplemented"), "ServerAnswer: An error occurred"),
    ],
)
def test_what_does_not_pass_is_said_at_once_with_object_operation_and_remedy(faulty, error, words):
    Folder.at("faulty://bucket").write("other", b"")
    faulty.faults += [("put", error)]
    with pytest.raises(StorageError, match=f"cannot write faulty://bucket/a/b: {words}"):
        Folder.at("faulty://bucket/a").write("b", b"1")
    assert faulty.count("put", "a/b") == 1


def test_a_missing_bucket_is_named(faulty):
    with pytest.raises(StorageError, match="there is no bucket absent: create it, or correct the URL"):
        Folder.at("faulty://absent").read("a")
    Folder.at("faulty://bucket").write("a", b"")
    with pytest.raises(FileNotFoundError, match="faulty://bucket/b"):
        Folder.at("faulty://bucket").read("b")


def test_a_write_whose_answer_was_lost_is_done_again_with_the_same_end(faulty):
    folder = Folder.at("faulty://bucket/runs")
    plain = faulty.put_file

    def lose_the_answer(self, local, path, **options):
        plain(self, local, path)
        faulty.put_file = plain
        raise ConnectionResetError(errno.ECONNRESET, "reset")

    faulty.put_file = lose_the_answer
    folder.write("a", b"whole")
    assert folder.read("a") == b"whole"
    assert faulty.count("put") == 2


def test_an_unknown_protocol_is_a_mistake_of_the_command(faulty):
    with pytest.raises(ConfigError, match="nosuch:// cannot be used here"):
        remote.facts("nosuch://bucket/a")


def test_credentials_in_a_url_are_refused_without_showing_them():
    with pytest.raises(ConfigError, match="put credentials into the environment") as caught:
        Folder.at("sftp://me:secret@host/runs")
    assert "secret" not in str(caught.value)
