"""How the layers' tensors travel: from whoever has them to whoever needs them. Knows no plan and no engine."""
