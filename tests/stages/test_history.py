"""What a training leaves behind: cut at the step that a resumed run goes on from."""

from __future__ import annotations

from pathlib import Path

from llmtool.stages.history import truncate_metrics


def test_metrics_lose_what_the_checkpoint_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "loss": 1.5}\n{"step": 4, "loss": null}\n{"step": 5}\n{"ste')
    truncate_metrics(path, 4)
    assert path.read_text() == '{"step": 2, "loss": 1.5}\n{"step": 4, "loss": null}\n'
    truncate_metrics(tmp_path / "none.jsonl", 4)
    assert (tmp_path / "none.jsonl").read_text() == ""


def test_line_ends_of_unicode_are_part_of_a_row_and_a_torn_character_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = '{"step": 2, "says": "Zürich\u2028\u2029\x85"}\n'.encode()
    path.write_bytes(whole + '{"step": 3, "says": "Zü'.encode()[:-1])
    truncate_metrics(path, 4)
    assert path.read_bytes() == whole
