"""The control plane: worker service and client, placement, local workers, tensor transfer. Sees no token."""
