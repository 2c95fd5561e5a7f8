"""Long tests that a person starts with `scripts/campaign`; the default suite runs each of them in small."""
