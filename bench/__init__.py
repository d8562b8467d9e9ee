"""The benchmark behind `make bench`. Imports nothing of mayros: the daemon is measured from outside, as its users meet it."""
