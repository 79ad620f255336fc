"""Requests in, frames out, tokens back: scheduling, sampling, text. Knows no engine, no socket and no HTTP."""
