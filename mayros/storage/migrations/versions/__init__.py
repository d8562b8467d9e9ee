"""One script per schema revision; each stands by itself and never changes once released."""
