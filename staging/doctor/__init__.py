"""What a role may do with a bucket, and what the store behind it can do, found out by trying."""

from staging.doctor.check import Check, Group, State, merged, missing_permissions
from staging.doctor.reading import ReadTest
from staging.doctor.setup import Setup, look_at_setup
from staging.doctor.writing import WriteTest

__all__ = [
    "Check",
    "Group",
    "ReadTest",
    "Setup",
    "State",
    "WriteTest",
    "look_at_setup",
    "merged",
    "missing_permissions",
]
