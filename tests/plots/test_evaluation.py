"""The pictures of an evaluation."""

import cv2
import numpy as np
import pytest

from tests.inference.test_evaluate import made_up
from tests.tiers import mostly_slow
from vit_jax.plots.evaluation import plot_evaluation
from vit_jax.plots.targets import plot_precision_recall, plot_predicted_numbers


@pytest.mark.parametrize("classes", mostly_slow([7, 30, 120], fast=[7, 120]))
def test_what_the_picture_shows(tmp_path, figures, classes):
    found = made_up(2000, classes)
    calibration = found.calibration()
    out = tmp_path / "e.png"
    plot_evaluation("a title", found.class_names, found.confusion, calibration, out)
    assert figures[0].get_suptitle() == "a title"
    confusion, reliability = figures[0].axes[:2]
    shares = confusion.images[0].get_array()
    counted = found.class_counts > 0
    assert np.asarray(shares).sum(axis=1)[counted] == pytest.approx(100)
    assert confusion.get_ylabel() == "true class"
    names = [label.get_text() for label in confusion.get_yticklabels()]
    assert (names == list(found.class_names)) == (classes <= 100)
    cells = [text.get_text() for text in confusion.texts]
    assert len(cells) == (0 if classes > 20 else (found.confusion > 0).sum())
    line = next(line for line in reliability.lines if line.get_marker() == "o")
    assert line.get_xdata() == pytest.approx(calibration.confidence)
    assert line.get_ydata() == pytest.approx(calibration.accuracy)
    assert f"{calibration.error:.4f} (15 bins)" in reliability.get_title()
    height, width, _ = cv2.imread(str(tmp_path / "e.png")).shape
    assert 500 < height < width < 1500


def test_pictures_of_labels_and_of_numbers(tmp_path, figures):
    there = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]])
    scores = np.array([[3, 1, 0], [2, 2, 0], [1, 3, 0], [0, 0, 0.0]])
    plot_precision_recall("a title", ["a", "b", "nowhere"], scores, there, tmp_path / "p.png")
    first, second = figures[0].axes[0].lines  # without the label that no image has
    assert [line.get_label() for line in (first, second)] == ["a", "b"]
    assert first.get_xdata() == pytest.approx([0.5, 0.5, 1, 1])
    assert first.get_ydata() == pytest.approx([1, 1 / 2, 2 / 3, 1 / 2])
    numbers = np.arange(8.0).reshape(4, 2)
    plot_predicted_numbers("a title", numbers, numbers + 1, tmp_path / "n.png")
    for panel, column in zip(figures[1].axes, numbers.T, strict=True):
        line, points = panel.lines
        assert (points.get_xdata() == column).all()
        assert (points.get_ydata() == column + 1).all()
        for ends in (line.get_xdata(), line.get_ydata()):
            assert list(ends) == [column.min(), column.max() + 1]


def test_nothing_is_cut_off_and_the_legend_covers_no_point(tmp_path, figures):
    found = made_up(2000, 100)
    names = [f"{name}, with a long name" for name in found.class_names]
    plot_evaluation("t", names, found.confusion, found.calibration(), tmp_path / "e.png")
    figure = figures[0]
    confusion, reliability = figure.axes[:2]
    for label in (confusion.xaxis.label, confusion.yaxis.label):
        extent = label.get_window_extent()
        assert min(extent.x0, extent.y0) >= 0
    legend = reliability.get_legend().get_window_extent()
    assert 0 <= legend.y0 < legend.y1 < reliability.get_window_extent().y0
    assert legend.x1 <= figure.bbox.x1
