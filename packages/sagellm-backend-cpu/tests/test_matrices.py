"""Whether the processor's matrix unit may be used."""

import ctypes

import pytest

from sagellm_backend.cpu import matrices


class TestLeave:
    @pytest.fixture(autouse=True)
    def fresh(self):
        matrices.available.cache_clear()
        yield
        matrices.available.cache_clear()

    def test_is_not_asked_for_where_the_processor_has_no_matrices(self, monkeypatch):
        monkeypatch.setattr(
            matrices.Path, "read_text", lambda *_, **__: "flags : avx512f avx512bw\n"
        )
        monkeypatch.setattr(matrices.ctypes, "CDLL", None)
        assert not matrices.available(matrices.INT8)

    def test_that_linux_refuses_is_not_there(self, monkeypatch):
        class Refusing:
            def __init__(self, *_, **__):
                self.syscall = lambda *_: -1

        flags = "flags\t: " + " ".join(matrices.INT8) + "\n"
        monkeypatch.setattr(matrices.Path, "read_text", lambda *_, **__: flags)
        monkeypatch.setattr(matrices.ctypes, "CDLL", Refusing)
        assert not matrices.available(matrices.INT8)

    def test_is_of_linux_on_x86(self, monkeypatch):
        monkeypatch.setattr(matrices.platform, "machine", lambda: "aarch64")
        monkeypatch.setattr(ctypes, "CDLL", None)
        assert not matrices.available(matrices.INT8)

    def test_without_a_file_of_the_processor(self, monkeypatch):
        def missing(*_, **__):
            raise FileNotFoundError

        monkeypatch.setattr(matrices.Path, "read_text", missing)
        assert not matrices.available(matrices.INT8)
