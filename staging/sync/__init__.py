"""A published checkpoint into a local directory: plan as data, then fetch what is missing, then publish.

    from staging.sync import SyncOptions, sync

`engine` is the whole flow in one function, `plan` the pure decision, `inspection` the facts it needs
and `fetch` the transfer. Resuming is nothing but planning again.
"""

from staging.sync.engine import SyncOptions, SyncResult, sync

__all__ = ["SyncOptions", "SyncResult", "sync"]
