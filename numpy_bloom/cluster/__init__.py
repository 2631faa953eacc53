"""Blocks spread over the workers of a Dask cluster. Only this room imports Dask."""
