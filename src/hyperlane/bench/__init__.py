"""Measurements that `hyperlane bench` and the scripts in `benchmarks/` share. Owns no figure."""
