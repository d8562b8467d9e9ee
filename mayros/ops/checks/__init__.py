"""The checks of `mayros doctor` and `mayros security audit`, each a small function; doctor.py lists them."""
