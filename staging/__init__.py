"""Checkpoint staging: model checkpoints into S3 and onto GPU nodes, proven byte by byte.

    staging.source        where bytes come from: `tar_file.TarFile`, `pipe.Pipe`
    staging.upload        `upload(source, store, location, options)` publishes them under a prefix
    staging.published     `read_manifest(store, location)` reads what is published, or says why nothing is
    staging.sync          `sync(store, location, directory, options)` brings it to a directory
    staging.verify        `verify_prefix`, `verify_directory` compare either with the manifest
    staging.store         the contract of a store, `s3.S3Store`, `memory.MemoryStore`
    staging.vocabulary    names, digests, manifests, errors, events

The library prints nothing and reads no environment; programs pass what they found. Importing this
package imports nothing else, so that a pod loads only what it uses.
"""

__version__ = "0.1.0"
