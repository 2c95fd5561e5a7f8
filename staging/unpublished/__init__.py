"""Prefixes that other tools filled: what lies there without a manifest, and what the bytes prove to be."""
