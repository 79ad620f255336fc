"""Pipelines over the workers of a head: brought up, kept up, replaced, taken down. Knows no request and no token."""
