"""The data plane: frames (sans-IO), links, and the head's two ends of the ring. Knows no engine and no request."""
