"""The rules, one module per kind of checkpoint that they are about."""
