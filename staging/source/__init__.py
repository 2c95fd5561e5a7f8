"""Where a checkpoint's bytes come from: one small class per kind of source."""
