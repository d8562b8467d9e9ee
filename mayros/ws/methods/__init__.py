"""The methods that clients may call, one module each; table.py lists them."""
