"""Measurements that the documentation quotes: `python -m benchmarks.NAME`, on a quiet machine."""
