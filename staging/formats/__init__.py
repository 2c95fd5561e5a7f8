"""Parsers for input from strangers. They do no I/O: bytes go in, facts or a refusal come out."""
