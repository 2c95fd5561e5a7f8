"""The wire to S3: the only place that imports an AWS SDK."""
