"""How the embedded pack `tiny` is trained: drawn scenes and styles, networks, training, export."""
