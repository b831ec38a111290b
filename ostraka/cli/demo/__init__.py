"""The demonstration: real documents, real questions, a killed node, and the proof that nothing was lost."""
