"""The report for people: one HTML file with everything in it, drawn from figures, pictures and training curves."""
