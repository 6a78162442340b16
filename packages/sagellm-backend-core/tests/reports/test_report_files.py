"""The files of a report: all are written, or none."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import textwrap

import pytest

from sagellm_backend.conformance.errors import HarnessError
from sagellm_backend.conformance.files import write_all
from sagellm_backend.conformance.report import write_reports


class TestWriting:
    def test_writes_three_files_and_nothing_else(self, passed, tmp_path):
        folder = tmp_path / "new" / "folder"
        paths = write_reports(passed, folder)
        assert sorted(path.name for path in paths) == ["junit.xml", "report.html", "report.json"]
        assert sorted(folder.iterdir()) == sorted(paths)
        assert json.loads((folder / "report.json").read_text("utf-8")) == passed

    def test_keeps_the_umask(self, tmp_path):
        before = os.umask(0o027)
        try:
            (path,) = write_all(tmp_path, {"a": "text"})
        finally:
            os.umask(before)
        assert path.stat().st_mode & 0o777 == 0o640

    def test_text_that_is_no_unicode_is_written_escaped(self, tmp_path):
        (path,) = write_all(tmp_path, {"a": "\ud800"})
        assert path.read_bytes() == b"\\ud800"

    def test_what_was_there_stays_if_one_file_cannot_be_written(self, tmp_path):
        (tmp_path / "b").mkdir()
        (tmp_path / "a").write_text("old")
        with pytest.raises(HarnessError, match=r"a, b.*folder"):
            write_all(tmp_path, {"a": "new", "b": "new"})
        assert (tmp_path / "a").read_text() == "old"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]

    def test_a_file_in_the_place_of_the_folder(self, tmp_path):
        (tmp_path / "out").write_text("")
        with pytest.raises(HarnessError, match="--out"):
            write_all(tmp_path / "out", {"a": "text"})

    def test_a_full_disk_leaves_nothing(self, tmp_path):
        """The kernel's own limit on files stands for a disk that is full."""
        script = """
            import sys
            from pathlib import Path
            from sagellm_backend.conformance.errors import HarnessError
            from sagellm_backend.conformance.files import write_all
            try:
                write_all(Path(sys.argv[1]), {"a": "new", "b": "x" * 100_000})
            except HarnessError as error:
                print(error)
            """
        (tmp_path / "a").write_text("old")
        limit = (50_000, 50_000)
        found = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
        )
        assert "Cannot write a, b" in found.stdout
        assert "File too large" in found.stdout
        assert found.stderr == ""
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]
