"""What a worker runs: the stage loop, the engine behind a Protocol, the KV arena. Knows no request and no plan."""
