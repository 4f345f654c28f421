"""Files in any storage that fsspec knows: s3://, gs://, memory://, https:// and the like."""
