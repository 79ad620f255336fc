"""The command line: flags become a configuration, a configuration becomes a running node, events become text.

Answers and JSON go to standard output; everything else goes to standard error. Modules here import what is slow to
import inside their commands, so that `hyperlane --help` is quick.
"""
