"""`python -m skerry.cli` is `skerry`."""

from skerry.cli.main import main

main()
