"""Data that cannot move: models of clients become one model, in one shot or in rounds."""
