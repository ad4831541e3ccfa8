"""`python -m instructjax`."""

from instructjax.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
