"""What tests of whole runs share."""

import pytest

from kdgan_compress.workflows import run


def quick_plot(*arguments):
    arguments[-1].touch()


@pytest.fixture(scope="module")
def quick_runs():
    """No plots, which take most of a tiny run's time, and a state saved after every epoch, whatever that takes here."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run, "plot_curves", quick_plot)
        patched.setattr(run, "plot_scores", quick_plot)
        patched.setattr(run._Saver, "if_due", run._Saver.now)
        yield
