"""The public verbs: wiring of the rooms below, no arithmetic."""
