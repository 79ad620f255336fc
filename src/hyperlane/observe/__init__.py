"""What is counted, and how it is shown to programs that collect figures. Knows no head and no route."""
