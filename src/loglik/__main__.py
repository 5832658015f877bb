"""Run the command line as `python -m loglik`."""

from loglik.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
