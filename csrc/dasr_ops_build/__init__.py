"""Builds the extension: a PEP 517 backend and a ``build_ext`` that runs ninja."""
