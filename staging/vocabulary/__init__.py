"""The words of the project as values: names, digests, manifests, errors, events. No I/O."""
