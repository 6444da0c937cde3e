"""`python -m workers.packages.echo`: run it."""

from workers.standalone import main

main("echo")
