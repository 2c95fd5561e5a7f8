"""Checkpoint staging: model checkpoints into S3 and onto GPU nodes, proven byte by byte."""
