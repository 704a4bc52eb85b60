"""`archy`: the terminal door."""


def main() -> int:
    """Run the command line. Returns the exit code.

    What it needs is loaded only now, so that Ctrl-C in that time ends it as quietly as later.
    """
    try:
        from market.cli.main import main as run
    except KeyboardInterrupt:
        return 130
    return run()


__all__ = ["main"]
