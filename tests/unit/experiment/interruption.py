"""Ctrl-C after a given number of records."""


def stop_after(number, of_run=None):
    """A ``show_progress`` that raises KeyboardInterrupt at this many records (of one run)."""
    seen = []

    def show_progress(progress):
        seen.append(progress)
        if sum(of_run is None or shown.run == of_run for shown in seen) == number:
            raise KeyboardInterrupt

    return show_progress
