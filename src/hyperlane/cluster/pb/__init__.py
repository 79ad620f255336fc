"""Generated from proto/hyperlane/v1/control.proto by scripts/generate_proto.py. Do not edit."""
