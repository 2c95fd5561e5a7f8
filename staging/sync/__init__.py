"""A published checkpoint into a local directory: plan as data, then fetch what is missing, then publish.

    from staging.sync import SyncOptions, present, sync

`engine` is the way from a prefix to a directory, `cached` the way through a directory that pods share.
`preflight` finds what is wrong before a weight is fetched; `turn` is for several processes at once;
`filling` is one attempt: `inspection` collects facts, `plan` decides, `fetch` transfers. Resuming is nothing
but planning again.
"""

from staging.sync.engine import present, present_published, sync
from staging.sync.options import SyncOptions, SyncResult

__all__ = ["SyncOptions", "SyncResult", "present", "present_published", "sync"]
