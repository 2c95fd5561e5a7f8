"""`model-downloader`: the init container that puts published checkpoints onto a node before it serves."""
