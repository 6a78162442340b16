"""Letters between the processes of a case."""

import threading
from types import SimpleNamespace

import pytest

from sagellm_backend.conformance import letters
from sagellm_backend.conformance.exam import CheckFailed
from sagellm_backend.conformance.letters import Letters


def exam(place):
    return SimpleNamespace(init_method=place and f"file://{place}", case=SimpleNamespace(id="kv.x"))


@pytest.fixture
def pair(tmp_path):
    return tuple(Letters(exam(tmp_path / "meet")) for _ in range(2))


def test_a_letter_is_read_as_it_was_written_by_whoever_asks(pair):
    one, other = pair
    late = threading.Timer(0.05, one.send, ("a word", b"\x00\xff"))
    late.start()
    assert other.receive("a word") == b"\x00\xff"
    assert one.receive("a word") == other.receive("a word")
    late.join()


def test_who_waits_hears_that_the_other_failed(pair):
    one, other = pair
    with pytest.raises(KeyError), one:
        raise KeyError("planted")
    with pytest.raises(CheckFailed, match="failed before it sent 'done'"):
        other.receive("done")


def test_who_ends_well_says_nothing(pair, monkeypatch):
    monkeypatch.setattr(letters, "TIMEOUT_S", 0.02)
    one, other = pair
    with one:
        pass
    with pytest.raises(CheckFailed, match="No word 'done'"):
        other.receive("done")


def test_one_process_has_nobody_to_write_to():
    with pytest.raises(CheckFailed, match=r"kv\.x"):
        Letters(exam(None))
