"""What the figures of speed, memory, quality and recall are made with: `python -m benchmarks.mixer`, and so on."""
