"""Figures of the chapter on attention."""

import numpy as np
import pandas as pd
import pytest

from d3d.probing.map_checks import RANDOMISED_FROM, REMOVED
from d3d.report import attention

figure = pytest.mark.mpl_image_compare(style="default", savefig_kwargs={"dpi": 60}, tolerance=4)


def test_the_figures_know_the_stages_of_the_experiment():
    assert tuple(attention.STAGES) == RANDOMISED_FROM


@figure
def test_over_time():
    frames = np.arange(8.0)
    return attention.over_time({"rgb_longer": [frames / 8, frames / 10], "d3d": [1 - frames / 8, 1.1 - frames / 8]})


@figure
def test_trust():
    rows = [
        ("d3d", f"randomised/{stage}/{method}", level * (1 - k / 5) + noise)
        for k, stage in enumerate(RANDOMISED_FROM)
        for method, level in zip(attention.METHODS, (0.9, 0.8, 0.4), strict=True)
        for noise in (-0.02, 0.02)
    ]
    table = pd.DataFrame([*rows, ("rgb", rows[0][1], 99.0)], columns=["arm", "metric", "value"])
    falls = {"random": 1, "motion_gradients": 8, "integrated_gradients": 4, "grad_cam": 2}
    curves = {name: np.exp(-rate * np.array(REMOVED)) for name, rate in falls.items()}
    return attention.trust(table, "d3d", curves, REMOVED)
