"""`python -m jaxguard`."""

from jaxguard.cli import main

main()
