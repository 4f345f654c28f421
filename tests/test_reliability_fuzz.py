"""Damaged files through the commands, a few of each kind: the long form is
tests/bench/reliability/fuzz.py."""

import warnings

import pytest

from tests.bench.reliability import fuzz


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    fuzz.make_files(folder)
    return folder


@pytest.mark.parametrize(("kind", "count"), [("weights", 4), ("configs", 6), ("clips", 3)])
def test_damaged_files_are_taken_or_refused_in_one_line(files, monkeypatch, kind, count):
    from std_cli.stylize import stylizer

    # what a clip is read with is loaded once
    monkeypatch.setattr(stylizer, "load_pipeline", stylizer.load_pipeline)
    if kind == "clips":
        fuzz.share_pipelines()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = [fuzz.run_case(kind, 1, number, files) for number in range(count)]
    assert not [message for outcome, message in results if outcome == "raw"]
    assert "refused" in {outcome for outcome, _ in results}
