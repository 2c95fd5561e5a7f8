"""Object stores: the contract (`store`), S3 (`s3`) and a bucket in memory (`memory`)."""
