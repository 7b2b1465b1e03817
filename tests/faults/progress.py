"""Progress of a harness: one that is ended early has shown what it did."""


def print_progress(done: int, wanted: int, result: str) -> None:
    """Print a line as a fault is done, such as "12/200 killed in write: same bits"."""
    print(f"{done}/{wanted} {result}", flush=True)
