"""Runs `python -m orderstream.cli`."""

from orderstream.cli import main

main()
