"""What `distillctl predict` does with files that lie where its output goes, and with a broken CSV file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support.finished import Echo, linear_run

from distillctl import predict as work
from distillctl.cli.main import cli
from distillctl.collect import CollectOptions
from distillctl.context import Context
from distillctl.errors import DataError, UsageError
from distillctl.progress import Silent
from distillctl.using import Student

ROWS = [json.dumps({"id": f"q{n}", "question": f"where is é {n}", "conversation_context": ""}) + "\n"
        for n in range(6)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return linear_run(tmp_path_factory.mktemp("workspace"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Six rows."""
    (tmp_path / "in.jsonl").write_text("".join(ROWS))
    return tmp_path / "in.jsonl"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """Where a call that mends an output keeps its earlier lines."""
    return tmp_path / "out.jsonl.before"


def predict(run: Context, source: Path, output: Path, *more: str) -> Result:
    return CliRunner().invoke(cli, [
        "predict", run.run_name, "--workspace", str(run.workspace.root), "-i", str(source), "-o", str(output),
        *more], catch_exceptions=False)


def ids(path: Path) -> list[str | None]:
    return [json.loads(line)["id"] for line in path.read_text(encoding="utf-8").splitlines()]


def failing(whole: str, number: int) -> str:
    """The output with a line that has an error instead of its answer."""
    lines = whole.splitlines(keepends=True)
    failed = json.loads(lines[number]) | {"output": None, "value": None, "error": "x"}
    return "".join([*lines[:number], json.dumps(failed) + "\n", *lines[number + 1:]])


class TestNoEndOfLine:
    """A file whose last line has no end: half a line of ours, or somebody else's."""

    @pytest.mark.parametrize("content", [
        '{"my": "precious", "n": [1, 2, 3]}', "my own notes", '{"id": 7, "text": "mine"}', '{"id": "7"}',
        '{"id": "q0", "text": "mine, and long enough to see that it is"}', '{"id": nothing',
        '{"id": "q0", "run": "other/student", "output": "docs"', "\ufeff", '{"id":"q0"'])
    def test_what_is_not_ours_is_left_alone(self, run: Context, source: Path, out: Path,
                                            content: str) -> None:
        out.write_text(content)
        with pytest.raises(UsageError, match=r"out\.jsonl:1: is no output of `predict`"):
            predict(run, source, out)
        assert out.read_text() == content

    def test_nor_is_it_cut_off_behind_our_own_lines(self, run: Context, source: Path, out: Path) -> None:
        predict(run, source, out)
        content = out.read_text().splitlines(keepends=True)[0] + "# a remark"
        out.write_text(content)
        with pytest.raises(UsageError, match=r"out\.jsonl:2: is no output"):
            predict(run, source, out)
        assert out.read_text() == content

    @pytest.mark.parametrize("row", [
        '{"id": "q\\"\\\\é", "question": "why", "conversation_context": ""}', "{half"])
    def test_our_own_line_may_end_anywhere(self, run: Context, source: Path, out: Path, row: str) -> None:
        """Half a row has no id."""
        student = Student("a/é", run.task, Echo(), None, CollectOptions(), None, None)
        source.write_text(row + "\n")

        def answer() -> bytes:
            work.predict(student, work.read_requests(source, run.task, None), out, Silent())
            return out.read_bytes()

        whole = answer()
        for end in range(len(whole)):
            out.write_bytes(whole[:end])
            assert answer() == whole


class TestBefore:
    """`<output>.before`: from another run, from other rows, or nobody's."""

    def test_answers_of_another_run_are_not_taken_over(self, run: Context, source: Path, out: Path,
                                                       before: Path) -> None:
        predict(run, source, out)
        content = failing(out.read_text(), 2).replace(run.rundir.name, "other/student")
        before.write_text(content)
        out.unlink()
        with pytest.raises(UsageError, match=r"out\.jsonl\.before:1 `run`: holds another student's answers"):
            predict(run, source, out)
        assert before.read_text() == content

    def test_a_row_that_was_deleted_is_told_with_the_file_to_delete(self, run: Context, source: Path,
                                                                    out: Path, before: Path) -> None:
        source.write_text("".join([*ROWS[:3], "{bad\n", *ROWS[4:]]))
        predict(run, source, out)
        source.write_text("".join([*ROWS[:3], *ROWS[4:]]))
        with pytest.raises(UsageError) as caught:
            predict(run, source, out)
        assert f"{before}:5 `id`: was written for other rows" in str(caught.value)
        assert "delete out.jsonl.before" in str(caught.value)
        before.unlink()
        assert predict(run, source, out).exit_code == 0
        assert ids(out) == ["q0", "q1", "q2", "q4", "q5"]

    def test_a_file_of_that_name_that_is_no_output_is_left_alone(self, run: Context, source: Path, out: Path,
                                                                 before: Path) -> None:
        for content in ("my own notes\n", "my own notes", json.dumps({"run": run.rundir.name}) + "\n"):
            before.write_text(content)
            with pytest.raises(UsageError, match=r"out\.jsonl\.before:1: is no output of `predict`"):
                predict(run, source, out)
            assert before.read_text() == content

    def test_so_is_a_copy_of_a_whole_output(self, run: Context, source: Path, out: Path,
                                            before: Path) -> None:
        predict(run, source, out)
        before.write_bytes(out.read_bytes())
        with pytest.raises(UsageError, match=r"out\.jsonl\.before: is not what a stopped `predict` leaves"):
            predict(run, source, out)
        assert before.read_bytes() == out.read_bytes()

    def test_half_a_line_at_its_end_is_asked_again(self, run: Context, source: Path, out: Path,
                                                   before: Path) -> None:
        predict(run, source, out)
        whole = out.read_text()
        before.write_text(failing(whole, 2)[:-20])
        out.unlink()
        done = json.loads(predict(run, source, out, "--json").stdout)
        assert (done["reused"], done["rows"]) == (4, 6)
        assert out.read_text() == whole and not before.exists()


class TestCsv:
    """Rows of a CSV file that are none."""

    @staticmethod
    def rows(path: Path, bad: str) -> Path:
        """Thirty rows with a bad one in line 4."""
        good = [f"q{n},where is it {n},\n" for n in range(30)]
        path.write_text("".join(["id,question,conversation_context\n", *good[:2], bad, *good[3:]]))
        return path

    def test_one_costs_no_other_its_answer(self, run: Context, out: Path, tmp_path: Path) -> None:
        source = self.rows(tmp_path / "in.csv", 'q2,"he said "hello" to me",\n')
        done = predict(run, source, out, "--json")
        assert (done.exit_code, json.loads(done.stdout)["failed"]) == (1, 1)
        assert f"{source}:4: is not CSV" in done.stderr
        assert ids(out) == ["q0", "q1", None, *(f"q{n}" for n in range(3, 30))]
        self.rows(source, 'q2,"he said ""hello"" to me",\n')
        mended = predict(run, source, out, "--json")
        assert (mended.exit_code, json.loads(mended.stdout)["reused"]) == (0, 29)
        assert ids(out) == [f"q{n}" for n in range(30)]

    def test_a_quote_that_is_never_closed_is_told_of_the_whole_file(self, run: Context, out: Path,
                                                                    tmp_path: Path) -> None:
        source = self.rows(tmp_path / "in.csv", 'q2,"he said hello,\n')
        with pytest.raises(DataError, match=r"in\.csv:4: is not CSV: unexpected end of data; 27 more lines"):
            predict(run, source, out)
        assert not out.exists()
