"""Outbound models, one module per wire format."""
