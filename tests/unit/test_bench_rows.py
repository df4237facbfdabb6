"""The further rows of `make bench` are left out if they would begin too late."""

from pathlib import Path

from tests.load.bench import order_rows


def test_rows_that_would_begin_too_late_are_left_out_and_say_how_to_measure_them(tmp_path: Path) -> None:
    rows = list(order_rows.measure(["growth", "replicas"], tmp_path, quick=True, is_late=lambda: True))
    assert [row.name for row in rows] == ["replicas", "growth"]
    assert [figure.name for row in rows for figure in row.figures] == ["left out", "left out"]
    assert "ROWS=growth" in rows[1].figures[0].measured
    assert list(tmp_path.iterdir()) == []
