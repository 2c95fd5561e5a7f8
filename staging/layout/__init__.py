"""What a servable checkpoint looks like: where its root is, and rules that yield findings. No I/O."""
