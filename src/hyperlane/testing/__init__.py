"""Public fakes, small models and checks for tests of Hyperlane and of what is built on it."""
