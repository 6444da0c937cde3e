"""`python -m workers.packages.shell`: run it."""

from workers.standalone import main

main("shell")
