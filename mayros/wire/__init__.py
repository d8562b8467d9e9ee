"""Codecs without I/O: what goes over the wire, as bytes in and bytes out."""
