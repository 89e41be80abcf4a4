"""Everything that ships to Lambda, and nothing else. Imports nothing of ``dask_serverless``."""
