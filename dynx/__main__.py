"""`python -m dynx`."""

from dynx.cli.main import main

main()
