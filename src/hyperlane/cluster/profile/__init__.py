"""Measuring the cluster: what devices and paths cost, for the planner.

`shape` says what is to be measured for a model, `measured` what comes of it.
"""
