"""The local side: files below an open directory, partial files, the ready marker, publication."""
